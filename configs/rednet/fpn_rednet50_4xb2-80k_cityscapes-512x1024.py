_base_ = [
    '../_base_/seg/models/semantic_fpn.py',
    '../_base_/seg/datasets/cityscapes.py',
    '../_base_/seg/schedules/sgd_80k.py',
    '../_base_/seg/default_runtime.py',
]
