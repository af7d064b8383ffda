-- Append an event: arg.type, .data (JSON text). Of previews only the last few stay: arg.most_previews,
-- .preview_bytes.
if not held() then
  return refusal()
end
local id = event(arg.type, arg.data)
if arg.type == 'preview' then
  redis.call('RPUSH', PREVIEWS, #arg.data .. ' ' .. id)
  local bytes = redis.call('HINCRBY', JOB, 'preview_bytes', #arg.data)
  while bytes > arg.preview_bytes or redis.call('LLEN', PREVIEWS) > arg.most_previews do
    local size, oldest = string.match(redis.call('LPOP', PREVIEWS), '(%d+) (.+)')
    redis.call('XDEL', EVENTS, oldest)
    bytes = redis.call('HINCRBY', JOB, 'preview_bytes', -size)
  end
end
return 1
