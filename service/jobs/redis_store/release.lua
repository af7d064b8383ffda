-- Hand a claimed job back, unfinished: arg.reason.
if not held() then
  return refusal()
end
if get('cancel_reason') then
  finish_canceled(get('cancel_reason'))
else
  requeue(tonumber(get('attempt')), arg.reason)
  count('released')
end
return 1
