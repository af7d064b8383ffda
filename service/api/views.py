"""A job as its owner sees it, with where it stands and links that work."""

from fastapi import Request

from service.api.dependencies import Services
from service.api.schemas import JobView, Links, QueueView, SignedLinks
from service.jobs.job import Job, Status


async def view_of(services: Services, job: Job, request: Request | None = None) -> JobView:
    """The view of a job, as its owner is shown it; without a request with links from the root."""
    own = f"{request.scope.get('root_path', '') if request else ''}/jobs/{job.id}"
    artifacts = {name: f"{own}/artifacts/{name}" for name in sorted(job.artifacts)}
    sign = services.signer.sign
    links = Links(
        self=own,
        events=f"{own}/events",
        cancel=f"{own}/cancel",
        artifacts=artifacts,
        signed=SignedLinks(
            events=await sign(f"{own}/events"),
            artifacts={name: await sign(path) for name, path in artifacts.items()},
        ),
    )
    place = await services.store.place(job) if job.status is Status.QUEUED else None
    queue = None if place is None else QueueView(position=place.position, eta=place.eta)
    shown = {name: getattr(job, name) for name in JobView.model_fields if hasattr(job, name)}
    return JobView(**shown, links=links, queue=queue)
