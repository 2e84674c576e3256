"""Clusters voice prints into speakers, and finds the number of speakers. Pure.

Average linkage: the two clusters whose voice prints are most alike, on average over all pairs, are merged first. Of vectors of
length 1 that average is the product of the clusters' means, so no matrix of all pairs is needed.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from msgspec import Struct

VoicePrints = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Vectors of length 1, shape [n, 192]."""
SpeakerNumbers = np.ndarray[tuple[int], np.dtype[np.intp]]
"""The cluster of each voice print, shape [n]."""

Durations = np.ndarray[tuple[int], np.dtype[np.float64]]
"""Seconds that each voice print stands for, shape [n]."""

SAME_SPEAKER = 0.4
"""Cosine from which two clusters are one speaker, on average over their voice prints. Chosen for this model on 30 dialogues, of
which 0.38 to 0.42 find the right number in 29."""

SAME_AT_FIRST = 0.65
"""The same for the first pass over long recordings, which only has to make them shorter."""

MAX_AT_ONCE = 1500
"""Voice prints that are clustered at once: linkage takes time with their square."""

MIN_SPEAKER_S = 2.5
"""Seconds of speech below which a cluster is no speaker: a laugh or a noise gives odd voice prints."""

ROUNDS = 2
"""Times that all voice prints move to the nearest cluster, at the end."""


class SpeakerBounds(Struct, frozen=True):
    """The least and the largest number of speakers."""

    least: int
    most: int


class VoiceMerge(Struct, frozen=True):
    """Two clusters that become one, each by a voice print in it, and how alike they are."""

    one: int
    other: int
    alike: float


def cluster_voices(voices: VoicePrints, seconds: Durations, bounds: SpeakerBounds) -> SpeakerNumbers:
    """Find the speaker of each voice print, numbered from 0; `seconds` is the duration of each voice print's speech."""
    count = len(voices)
    if count == 0:
        return np.zeros(0, np.intp)
    members = _reduce_voices(voices)
    sizes = np.bincount(members).astype(np.float64)
    means = _sum_by_cluster(voices, members) / sizes[:, None]
    merges = link_clusters(means, sizes)
    found = _choose_cut(merges, members, seconds, bounds)
    for _ in range(ROUNDS):
        found = _move_to_nearest(voices, found)
    return found


def _reduce_voices(voices: VoicePrints) -> SpeakerNumbers:
    """Cluster the parts of a long recording by themselves, with a threshold that only joins voice prints of one speaker."""
    count = len(voices)
    if count <= MAX_AT_ONCE:
        return np.arange(count)
    found = np.empty(count, np.intp)
    used = 0
    for at in range(0, count, MAX_AT_ONCE):
        part = voices[at : at + MAX_AT_ONCE]
        merges = [merge for merge in link_clusters(part, np.ones(len(part))) if merge.alike >= SAME_AT_FIRST]
        labels = apply_merges(merges, len(part))
        found[at : at + len(part)] = labels + used
        used += labels.max() + 1
    return found


def link_clusters(means: np.ndarray, sizes: np.ndarray) -> list[VoiceMerge]:
    """Merge clusters, given by the mean and the number of their voice prints, until one is left: the most alike first.

    A chain of nearest neighbours: each step goes from a cluster to its nearest one, until two are each other's.
    """
    means, sizes = means.astype(np.float32).copy(), sizes.astype(np.float32).copy()
    alive = np.ones(len(means), bool)
    merges: list[VoiceMerge] = []
    chain: list[int] = []
    while len(merges) < len(means) - 1:
        if not chain:
            chain.append(int(np.argmax(alive)))
        last = chain[-1]
        alike = np.where(alive, means @ means[last], -np.inf)
        alike[last] = -np.inf
        nearest = int(np.argmax(alike))
        if len(chain) > 1 and alike[chain[-2]] >= alike[nearest]:
            nearest = chain[-2]
        if len(chain) > 1 and nearest == chain[-2]:
            del chain[-2:]
            merges.append(VoiceMerge(last, nearest, float(alike[nearest])))
            both = sizes[last] + sizes[nearest]
            means[last] = (means[last] * sizes[last] + means[nearest] * sizes[nearest]) / both
            sizes[last] = both
            alive[nearest] = False
        else:
            chain.append(nearest)
    return sorted(merges, key=lambda merge: -merge.alike)


def apply_merges(merges: list[VoiceMerge], count: int) -> SpeakerNumbers:
    """Number the clusters that these merges leave of `count` ones, from 0."""
    parents = list(range(count))

    def find(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    for merge in merges:
        parents[find(merge.other)] = find(merge.one)
    return np.unique([find(at) for at in range(count)], return_inverse=True)[1].astype(np.intp)


def _choose_cut(merges: list[VoiceMerge], members: SpeakerNumbers, seconds: np.ndarray, bounds: SpeakerBounds) -> SpeakerNumbers:
    """Make so many of the merges that the number of speakers is within the bounds. Clusters too small for a speaker are -1."""
    count = len(merges) + 1

    def cut(kept: int) -> SpeakerNumbers:
        """The speakers if so many clusters are kept."""
        labels = apply_merges(merges[: count - kept], count)[members]
        return _drop_small(labels, seconds)

    def number(labels: SpeakerNumbers) -> int:
        return len(np.unique(labels[labels >= 0]))

    kept = count - sum(merge.alike >= SAME_SPEAKER for merge in merges)
    found = cut(kept)
    while number(found) > bounds.most and kept > 1:
        kept -= 1
        found = cut(kept)
    best, tried = found, kept
    while number(best) < bounds.least and tried < min(count, kept + MAX_AT_ONCE // 10):
        tried += 1
        if number(other := cut(tried)) > number(best):
            best = other
    return best


def _drop_small(labels: SpeakerNumbers, seconds: np.ndarray) -> SpeakerNumbers:
    """Mark the members of clusters of too little speech by -1; the largest cluster stays in any case."""
    totals = np.bincount(labels, seconds)
    small = totals < MIN_SPEAKER_S
    small[np.argmax(totals)] = False
    return np.where(small[labels], -1, labels)


def _sum_by_cluster(voices: VoicePrints, labels: SpeakerNumbers) -> np.ndarray:
    sums = np.zeros((labels.max() + 1, voices.shape[1]))
    np.add.at(sums, labels, voices)
    return sums


def _move_to_nearest(voices: VoicePrints, labels: SpeakerNumbers) -> SpeakerNumbers:
    """Give every voice print to the speaker whose mean is nearest, and so those that have no speaker yet."""
    _, known = np.unique(labels[labels >= 0], return_inverse=True)
    centers = compute_centers(voices[labels >= 0], known)
    return cast(SpeakerNumbers, np.argmax(voices @ centers.T, axis=1))


def compute_centers(voices: VoicePrints, labels: SpeakerNumbers) -> VoicePrints:
    """Compute the direction of each speaker's voice prints, shape [speakers, 192]."""
    sums = _sum_by_cluster(voices, labels)
    return cast(VoicePrints, (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)).astype(np.float32))
