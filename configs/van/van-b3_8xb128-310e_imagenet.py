_base_ = '../_base_/cls/recipes/van.py'
model = dict(
    backbone=dict(type='mmrednet.VAN', arch='b3', drop_path_rate=0.2, out_indices=(3,)),
    channels=512,
)
