-- Settle a running job whose lease ended: arg.attempts, .reason, .error, .failed, .canceled.
local ends = redis.call('ZSCORE', RUNNING, arg.id)
if not ends or tonumber(ends) > now() then
  return 'held'
end
if get('status') ~= 'running' then
  redis.call('ZREM', RUNNING, arg.id)
  return 'gone'
end
if get('cancel_requested') == '1' then
  finish('canceled', nil, nil, arg.canceled)
  return 'canceled'
end
local attempt = tonumber(get('attempt'))
if attempt >= arg.attempts then
  finish('failed', 'error', arg.error, arg.failed)
  return 'failed'
end
requeue(attempt + 1, arg.reason)
return 'queued'
