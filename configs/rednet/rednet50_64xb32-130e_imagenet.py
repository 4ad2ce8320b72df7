_base_ = '../_base_/cls/recipes/rednet.py'
# the stem of the released classifiers; --cfg-options model.backbone.depth=26 and so on for the
# others
model = dict(
    backbone=dict(type='mmrednet.RedNet', depth=50, stem_kernel_size=3, out_indices=(3,)),
    channels=2048,
)
