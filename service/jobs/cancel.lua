-- Cancel a queued job at once, ask the owner of a running one, leave a finished one alone.
local status = get('status')
if status == 'running' then
  redis.call('HSET', JOB, 'cancel_requested', 1)
  redis.call('SADD', CANCELED, arg.id)
elseif may_become('canceled') then
  redis.call('HSET', JOB, 'cancel_requested', 1)
  finish('canceled', nil, nil, arg.data)
end
return status
