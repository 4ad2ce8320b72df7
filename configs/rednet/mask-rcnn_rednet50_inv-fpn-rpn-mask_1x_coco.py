_base_ = './mask-rcnn_rednet50_inv-fpn_1x_coco.py'
model = dict(
    rpn_head=dict(type='mmrednet.SpatialRPNHead'),
    roi_head=dict(mask_head=dict(type='mmrednet.SpatialFCNMaskHead')),
)
# the authors' value; without clipping the loss was reported to become NaN
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
