"""The job contract between API and worker: what a job is and how both sides keep it in Redis.

It knows nothing of HTTP and nothing of networks. `job` says what a job is and how it may move,
`parameters` what may be asked, `store` is the API's side, `lease` the worker's.
"""
