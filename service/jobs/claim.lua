-- Take a queued job whose checkpoint the worker serves: arg.token, .lease, .worker, .digests.
if held() then
  return redis.call('HGETALL', JOB) -- sent again after a lost answer
end
if not may_become('running') then
  return nil
end
local digest, served = get('digest'), false
for _, candidate in ipairs(arg.digests) do
  served = served or candidate == digest
end
if not served then
  return nil
end
local time = now()
redis.call('ZREM', QUEUED, arg.id)
redis.call('ZADD', RUNNING, seconds(time + arg.lease), arg.id)
redis.call('HSET', JOB, 'status', 'running', 'started', seconds(time), 'token', arg.token)
event('started', cjson.encode({worker = arg.worker, attempt = tonumber(get('attempt'))}))
return redis.call('HGETALL', JOB)
