_base_ = './fpn_rednet50_4xb2-80k_cityscapes-512x1024.py'
model = dict(neck=dict(type='mmrednet.SpatialFPN'))
