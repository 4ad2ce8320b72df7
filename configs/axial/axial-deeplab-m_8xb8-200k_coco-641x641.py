_base_ = './axial-deeplab-s_8xb8-200k_coco-641x641.py'
model = dict(backbone=dict(arch='m'), decoder=dict(in_channels=[192, 384, 1536]))
