"""Pretraining of backbones by image classification, with mmengine alone."""

from ..packages import require

require('mmrednet.pretraining', 'mmengine', 'mmcv')

from .accuracy import Accuracy
from .classifier import ImageClassifier
from .image_folder import ImageFolder, check_batches, use_image_folders
from .transforms import PackImage, RandomErasing, RandomResizedCrop

__all__ = [
    'Accuracy',
    'ImageClassifier',
    'ImageFolder',
    'PackImage',
    'RandomErasing',
    'RandomResizedCrop',
    'check_batches',
    'use_image_folders',
]
