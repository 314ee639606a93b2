"""What a worker would train a leased trial with."""

from __future__ import annotations

from visweep.search.duplicates import Proposal, propose_next
from visweep.search.study import OpenStudy
from visweep.storage.lease import Lease


def proposal_for(opened: OpenStudy, lease: Lease) -> Proposal:
    """The next proposal, by what the study holds now."""
    return propose_next(opened, lease, opened.storage.get_trial(lease.trial_id))
