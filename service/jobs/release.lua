-- Hand a claimed job back, unfinished: arg.reason, .canceled (the data of that event).
if not held() then
  return 0
end
if get('cancel_requested') == '1' then
  finish('canceled', nil, nil, arg.canceled)
else
  requeue(tonumber(get('attempt')), arg.reason)
end
return 1
