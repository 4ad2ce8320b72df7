_base_ = '../_base_/cls/recipes/san.py'
model = dict(
    backbone=dict(type='mmrednet.SAN', depth=10, relation='pairwise', out_indices=(4,)),
    channels=2048,
)
