-- Settle a job whose deadline has passed: a queued one is aborted, the owner of a running one is
-- asked to stop, and one that nobody owns any more is canceled.
if not overdue(now()) then
  return 0
end
local status = get('status')
if status == 'queued' then
  finish_canceled('deadline')
elseif status == 'running' then
  ask_to_stop('deadline')
  if not leased() then
    finish_canceled(get('cancel_reason'))
  end
end
return 1
