-- Store a new job, its inputs and its first event. arg.fields: the job's hash; .cancel_after:
-- seconds until its deadline, if it has one.
if redis.call('EXISTS', JOB) == 1 then
  return redis.call('HGETALL', JOB) -- sent again after a lost answer
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
if ARGV[2] then
  redis.call('SET', INPUTS, ARGV[2])
end
event('queued', '{}')
redis.call('ZADD', queue(), seconds(time), ID)
return redis.call('HGETALL', JOB)
