"""The job contract between API and worker: what a job is and how both sides keep it.

It knows nothing of HTTP and nothing of networks. `job` says what a job is and how it may move,
`parameters` what may be asked. The store is a port: `store` is the API's side of it, `lease` the
worker's, `redis_store` what implements both.
"""
