-- End a claimed job: arg.status, .field, .document, .data (JSON text).
if get('status') == arg.status and get('token') == arg.token then
  return 1 -- sent again after a lost answer
end
if not held() or not may_become(arg.status) then
  return refusal()
end
finish(arg.status, arg.field, arg.document, arg.data)
return 1
