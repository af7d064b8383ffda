-- Prolong the lease by arg.lease, without new memory; says whether the job is still the caller's.
if not held() then
  return refusal() == 0 and 'lost' or 'deleted'
end
prolong_lease()
return 'held'
