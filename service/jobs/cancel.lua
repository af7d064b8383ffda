-- Cancel a queued job at once, ask the owner of a running one, leave a finished one alone.
local status = get('status')
if status == 'running' then
  ask_to_stop('requested')
elseif may_become('canceled') then
  finish_canceled('requested')
end
return status
