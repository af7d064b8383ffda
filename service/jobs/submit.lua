-- Store a new job, its inputs and its first event. arg.fields: the job's hash.
if redis.call('EXISTS', JOB) == 1 then
  return redis.call('HGETALL', JOB) -- sent again after a lost answer
end
local time = seconds(now())
for name, value in pairs(arg.fields) do
  redis.call('HSET', JOB, name, value)
end
redis.call('HSET', JOB, 'created', time)
if ARGV[2] then
  redis.call('SET', INPUTS, ARGV[2])
end
event('queued', '{}')
redis.call('ZADD', queue(), time, arg.id)
return redis.call('HGETALL', JOB)
