-- Take the first queued job that the worker can run, the most urgent priority first, in order:
-- arg.token, .lease, .worker, .digests (that it serves), .rooms (rows, by priority), .scan (ids
-- looked at in a queue). A job larger than the room is taken while there is any.
local CLAIM = KEYS[own + 1]
local id

local function look_at(candidate)
  id, JOB, EVENTS = candidate, string.format(JOB_OF, candidate), string.format(EVENTS_OF, candidate)
end

local taken = redis.call('GET', CLAIM)
if taken then
  look_at(taken)
  if held() then -- sent again after a lost answer
    redis.call('ZADD', RUNNING, 'XX', seconds(now() + arg.lease), id)
    return redis.call('HGETALL', JOB)
  end
end

local served = {}
for _, digest in ipairs(arg.digests) do
  served[digest] = true
end

-- Look at the jobs of a queue up to the first one that is served; forget those that are gone.
local function find_in(waiting)
  for _, candidate in ipairs(redis.call('ZRANGE', waiting, 0, arg.scan - 1)) do
    look_at(candidate)
    if not may_become('running') then
      redis.call('ZREM', waiting, candidate)
    elseif served[get('digest')] then
      return true
    end
  end
  return false
end

for _, priority in ipairs(PRIORITIES) do
  if (arg.rooms[priority] or 0) > 0 and find_in(QUEUED[priority]) then
    local time = now()
    redis.call('ZREM', QUEUED[priority], id)
    redis.call('ZADD', RUNNING, seconds(time + arg.lease), id)
    redis.call('HSET', JOB, 'status', 'running', 'started', seconds(time), 'token', arg.token)
    redis.call('SET', CLAIM, id, 'PX', math.ceil(arg.lease * 1000))
    event('started', cjson.encode({worker = arg.worker, attempt = tonumber(get('attempt'))}))
    return redis.call('HGETALL', JOB)
  end
end
return nil
