_base_ = '../_base_/cls/recipes/van.py'
model = dict(
    backbone=dict(type='mmrednet.VAN', arch='b0', drop_path_rate=0.1, out_indices=(3,)),
    channels=256,
)
