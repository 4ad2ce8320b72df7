_base_ = './retinanet_rednet50_fpn_1x_coco.py'
model = dict(neck=dict(type='mmrednet.SpatialFPN'))
# the authors' value; without clipping the loss was reported to become NaN
optim_wrapper = dict(clip_grad=dict(max_norm=40, norm_type=2))
