-- Store an artifact: arg.name, arg.media_type, bytes in ARGV[2].
if not held() then
  return refusal()
end
local name = ARTIFACT .. arg.name
redis.call('SET', JOB .. ':' .. name, ARGV[2], 'EX', arg.ttl)
redis.call('HSET', JOB, name, arg.media_type)
return 1
