_base_ = [
    './_base_/segnext_mscan-t.py',
    '../_base_/seg/datasets/cityscapes_1024x1024.py',
    '../_base_/seg/schedules/adamw_160k_head10x.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)),
)
