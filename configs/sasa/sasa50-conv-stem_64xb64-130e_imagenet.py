_base_ = '../_base_/cls/recipes/sasa.py'
model = dict(
    backbone=dict(type='mmrednet.SASAResNet', depth=50, stem='conv', out_indices=(3,)),
    channels=2048,
)
