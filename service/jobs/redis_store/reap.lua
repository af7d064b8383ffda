-- Settle a running job whose lease ended: arg.attempts, .reason, .error, .failed.
local ends = redis.call('ZSCORE', RUNNING, ID)
if not ends or tonumber(ends) > now() or leased() then
  return 'held'
end
if get('status') ~= 'running' then
  redis.call('ZREM', RUNNING, ID)
  return 'gone'
end
if get('cancel_reason') then
  finish_canceled(get('cancel_reason'))
  count('expired', 'canceled')
  return 'canceled'
end
local attempt = tonumber(get('attempt'))
if attempt >= arg.attempts then
  finish('failed', 'error', arg.error, arg.failed)
  count('expired', 'failed')
  return 'failed'
end
requeue(attempt + 1, arg.reason)
count('expired', 'queued')
return 'queued'
