-- Cancel a queued job at once, ask the owner of a running one, leave a finished one alone.
-- arg.reason: requested or abandoned.
local status = get('status')
if arg.reason == 'abandoned' and redis.call('ZREM', ABANDONED, ID) == 0 then
  return status -- somebody watches it again
end
if status == 'running' then
  ask_to_stop(arg.reason)
elseif may_become('canceled') then
  finish_canceled(arg.reason)
end
return status
