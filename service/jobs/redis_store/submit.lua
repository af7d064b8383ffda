-- Store a new job, its inputs and its first event; {what, …}: 'job' and its hash, or a refusal that
-- has written nothing. arg.fields: the job's hash; .cancel_after: seconds until its deadline, if it
-- has one; .attached: whether it is canceled when nobody watches it; .idempotency: the name, the
-- fingerprint and the ttl of the request, if it is to be carried out only once; .most_jobs that may
-- wait; .most_cost: row-calls that one owner may have unfinished.
if redis.call('EXISTS', JOB) == 1 then
  return {'job', redis.call('HGETALL', JOB)} -- sent again after a lost answer
end
local once = arg.idempotency
local REQUEST = once and string.format(REQUEST_OF, once.name)
local before = once and redis.call('HMGET', REQUEST, 'job', 'fingerprint') or {}
if before[1] then
  local hash = redis.call('HGETALL', string.format(JOB_OF, before[1]))
  if #hash > 0 then
    return before[2] == once.fingerprint and {'job', hash} or {'other content', before[1]}
  end
end
local function total(field)
  return tonumber(redis.call('HGET', TOTALS, field) or 0)
end
local owner, wanted = arg.fields.owner, arg.fields.rows * arg.fields.calls
if total('jobs') >= arg.most_jobs then
  return {'queue full', total('jobs')}
end
local taken = total('owner:' .. owner)
if arg.most_cost and taken > 0 and taken + wanted > arg.most_cost then
  return {'quota', taken}
end

local time = now()
for name, value in pairs(arg.fields) do
  redis.call('HSET', JOB, name, value)
end
redis.call('HSET', JOB, 'created', seconds(time))
if arg.cancel_after then
  redis.call('HSET', JOB, 'deadline', seconds(time + arg.cancel_after))
  redis.call('ZADD', DEADLINES, seconds(time + arg.cancel_after), ID)
end
if arg.attached then
  redis.call('HSET', JOB, 'attached', 1)
end
if once then
  redis.call('HSET', REQUEST, 'job', ID, 'fingerprint', once.fingerprint)
  redis.call('EXPIRE', REQUEST, once.ttl)
end
if ARGV[2] then
  redis.call('SET', INPUTS, ARGV[2])
end
event('queued', '{}')
count('submitted', arg.fields.operation, arg.fields.model)
enter_queue(seconds(time))
add('owner:' .. owner, wanted)
-- The owner's list forgets, as it grows, the jobs that have expired.
local OWNED = string.format(OWNED_OF, owner)
for _, oldest in ipairs(redis.call('ZRANGE', OWNED, 0, 1)) do
  if redis.call('EXISTS', string.format(JOB_OF, oldest)) == 0 then
    redis.call('ZREM', OWNED, oldest)
  end
end
redis.call('ZADD', OWNED, seconds(time), ID)
return {'job', redis.call('HGETALL', JOB)}
