-- Append an event: arg.type, arg.data (JSON text).
if not held() then
  return 0
end
event(arg.type, arg.data)
return 1
