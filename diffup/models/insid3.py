"""The decision rule of INSID3, a training-free rival, on the features of any backbone.

Cuttano, Trivigno, Reich, Cremers, Masone and Roth, "INSID3: Training-Free In-Context Segmentation with DINOv3", CVPR
2026, arXiv 2603.28480; code at github.com/visinf/INSID3 (read as of its commit 0f15807), which states no licence, so
that nothing of it is copied: this is our own implementation of the rule that both describe.

Letters: S stages · K supports · C channels of all stages · h w feature grid · L = h·w positions · R regions.

The rule, with p the prototype of the supports' foreground:

1. *Candidates* are query positions of positive cosine to p (where there is none, the tenth of them that is nearest)
   whose nearest position in a support is foreground, in at least half of the supports.
2. *Regions* of the query: average linkage of its positions, up to a cosine of `LINKED`.
3. The *seed* is the region with a candidate whose own prototype is nearest to p.
4. A region's *score* is the mean cosine of its positions to p, times the cosine of its prototype to the seed's, times
   its share of candidates (1 for the seed). The mask is all regions of a score above `ACCEPTED`.

Not as there: the features are those of the two deeper stages in place of the last layer of DINOv3-L at 1024 pixels,
compared by the mean of the stages' cosines, and no subspace of positions is taken off before supports and query are
compared (500 directions, estimated from a blank image, for that one backbone). The masks of boxes and scribbles are
where foreground outweighs background. Both thresholds are ours, fixed once for all backbones, as the published ones,
0.6 and 0.2, go with cosines of DINOv3: docs/results/evidence.md has what they were chosen on, and from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffup.models.regions import labels_of, tree

LINKED = 0.7  # cosine up to which positions are one region
ACCEPTED = 0.02  # score above which a region belongs to the object
EPS = 1e-6
NEAREST = 0.9  # quantile of the cosine to the prototype, where none is positive
DEEP = 2  # stages that are compared, the deepest


def _joined(stages: Sequence[Tensor]) -> Tensor:
    """Positions whose products are the mean of the stages' cosines, [..., L, C], from S × [..., C, h, w]."""
    return torch.cat([stage.float().flatten(-2).mT for stage in stages], dim=-1) / len(stages) ** 0.5


def insid3_mask(query: Sequence[Tensor], supports: Sequence[Tensor], weights_K2hw: Tensor) -> Tensor:
    """The object in one query, bool [h, w].

    Args:
        query: S stages [C, h, w], L2-normalised over C.
        supports: S stages [K, C, h, w], likewise.
        weights_K2hw: foreground and background weight of each support position in [0, 1]; a position without any is
            unknown and matches nothing.
    """
    query, supports = query[-DEEP:], supports[-DEEP:]
    query_LC, supports_KLC = _joined(query), _joined(supports)
    fg_KL, bg_KL = weights_K2hw.to(query_LC).flatten(2).unbind(1)
    most_K1 = fg_KL.amax(1, keepdim=True)
    # Of a tiny object, which outweighs background nowhere, the position that has most of it.
    inside_KL = fg_KL >= torch.minimum(bg_KL.clamp_min(EPS), most_K1)
    prototypes_KC = (inside_KL[:, None].float() @ supports_KLC)[:, 0] / inside_KL.sum(1, keepdim=True)
    prototype_C = normalize(prototypes_KC.mean(0), dim=0)
    to_prototype_L = query_LC @ prototype_C
    forward_L = to_prototype_L > 0
    if not forward_L.any():
        forward_L = to_prototype_L > to_prototype_L.quantile(NEAREST)
    unknown_KL = (fg_KL + bg_KL <= 0) & ~inside_KL
    nearest_KL = (supports_KLC @ query_LC.T).masked_fill(unknown_KL[..., None], float("-inf")).argmax(1)
    votes_L = inside_KL.gather(1, nearest_KL).sum(0)
    candidate_L = forward_L & (2 * votes_L >= len(fg_KL))
    shape = query[0].shape[-2:]
    if not candidate_L.any():
        return candidate_L.view(shape)
    labels_L = torch.from_numpy(labels_of(tree(query), distance=1 - LINKED)).to(query_LC.device)
    member_RL = (torch.arange(int(labels_L.max()) + 1, device=labels_L.device)[:, None] == labels_L).float()
    size_R1 = member_RL.sum(1, keepdim=True)
    share_R = (member_RL @ candidate_L.float()) / size_R1[:, 0]
    own_RC = normalize(member_RL @ query_LC, dim=-1)
    seed = int((own_RC @ prototype_C).masked_fill(share_R == 0, float("-inf")).argmax())
    share_R[seed] = 1
    score_R = (member_RL @ to_prototype_L) / size_R1[:, 0] * (own_RC @ own_RC[seed]) * share_R
    return (score_R > ACCEPTED)[labels_L].view(shape)
