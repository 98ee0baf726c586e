"""Non-maximum suppression against a double loop."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samparser.prediction.suppression import non_maximum_suppression


def suppressed_by_a_double_loop(boxes, scores, threshold):
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        x0, y0, x1, y1 = boxes[index]
        for other in kept:
            u0, v0, u1, v1 = boxes[other]
            common = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - common
            if common > threshold * union:
                break
        else:
            kept.append(index)
    return kept


box = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)).map(
    lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3])
)


@settings(max_examples=60)
@given(st.lists(st.tuples(box, st.integers(0, 5)), min_size=1, max_size=20), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_equals_a_double_loop(items, threshold):
    boxes, scores = [item[0] for item in items], [item[1] for item in items]
    kept = non_maximum_suppression(torch.tensor(boxes).float(), torch.tensor(scores).float(), threshold)
    assert kept.tolist() == suppressed_by_a_double_loop(boxes, scores, threshold)
