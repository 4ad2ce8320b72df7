_base_ = './faster-rcnn_rednet50_inv-fpn_1x_coco.py'
model = dict(rpn_head=dict(type='mmrednet.SpatialRPNHead'))
# the authors' value; without clipping the loss was reported to become NaN
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
