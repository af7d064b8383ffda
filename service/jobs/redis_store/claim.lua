-- Take the first queued job that the worker can run, the most urgent priority first, in order:
-- arg.token, .lease, .worker, .digests (that it serves), .rooms (rows, by priority). A job larger
-- than the room is taken while there is any.
local time = now()

local taken = redis.call('GET', string.format(CLAIM_OF, arg.token))
if taken then
  look_at(taken)
  if held() then -- sent again after a lost answer
    prolong_lease()
    return redis.call('HGETALL', JOB)
  end
end

-- The first job of a queue that can run, and when it came; those that are gone or late leave it.
local function first_of(waiting)
  while true do
    local head = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    if not head[1] then
      return nil
    end
    look_at(head[1])
    if not may_become('running') then
      redis.call('ZREM', waiting, ID)
    elseif overdue(time) then
      finish_canceled('deadline')
    else
      return ID, tonumber(head[2])
    end
  end
end

local function first_with(priority)
  local first, came
  for _, digest in ipairs(arg.digests) do
    local id, score = first_of(string.format(QUEUE_OF, priority, digest))
    if id and (not came or score < came) then
      first, came = id, score
    end
  end
  return first
end

for _, priority in ipairs(PRIORITIES) do
  local id = (arg.rooms[priority] or 0) > 0 and first_with(priority)
  if id then
    look_at(id)
    leave_queue()
    redis.call('HSET', JOB, 'status', 'running', 'started', seconds(time), 'token', arg.token)
    begin_lease()
    event('started', cjson.encode({worker = arg.worker, attempt = tonumber(get('attempt'))}))
    return redis.call('HGETALL', JOB)
  end
end
return nil
