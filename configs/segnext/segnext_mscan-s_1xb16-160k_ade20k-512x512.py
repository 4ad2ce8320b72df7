_base_ = [
    './_base_/segnext_mscan-s.py',
    '../_base_/seg/datasets/ade20k.py',
    '../_base_/seg/schedules/adamw_160k_head10x.py',
    '../_base_/seg/default_runtime.py',
]
train_dataloader = dict(batch_size=16)
