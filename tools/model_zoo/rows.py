"""Rows of ``docs/model_zoo.yml``: published figures of networks, and counts of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from mmrednet.analysis.categories import CATEGORIES, check_count, select
from mmrednet.analysis.counting import Complexity, count_network
from mmrednet.analysis.image_network import ImageNetwork
from mmrednet.analysis.networks import build_network
from mmrednet.analysis.reports import describe, missing

IMAGENET_CLASSES = 1000
# figures that have a published value
FIGURES = ('parameters', 'macs')


@dataclass(frozen=True)
class Convention:
    """A source's way of counting.

    Args:
        text: Description for the page.
        count: Categories or operators, see :func:`mmrednet.analysis.categories.select`.
        tool: Program that the source counts with. Default: '', not known.
        flops: Whether a multiply-add is two. Default: False.
        weights: Factors of operators that the source counts otherwise. Default: none.
        modules: Regular expressions by operators, categories or 'all'. Where the name of a module
            does not match, the tool does not see such operators. Default: none.
        resize: Whether the source counts that the first output is resized to the image. Default:
            False.
        decimals: Number of decimals that the tool prints, of which the source rounds again.
            Default: None, the source rounds once.
    """

    text: str
    count: Sequence[str]
    tool: str = ''
    flops: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    resize: bool = False
    decimals: int | None = None

    @property
    def unit(self) -> str:
        """Name of its unit."""
        return 'FLOPs' if self.flops else 'MACs'

    def giga(self, operators: Mapping[str, int]) -> float:
        """Return the sum of the counts of operators, in 10^9."""
        counts = select(Counter(operators), self.count, flops=self.flops)
        return sum(value * self.weights.get(name, 1) for name, value in counts.items()) / 1e9

    def visible(self, complexity: Complexity) -> Counter[str]:
        """Return the counts of the operators of a network that the tool sees."""
        operators: Counter[str] = Counter()
        for module, counts in complexity.own().items():
            for operator, count in counts.items():
                patterns = [self.modules.get(name, '') for name in ('all', operator)]
                patterns += [
                    pattern
                    for category, pattern in self.modules.items()
                    if operator in CATEGORIES.get(category, ())
                ]
                if all(re.search(pattern, module) for pattern in patterns):
                    operators[operator] += count
        # an operator that is nowhere seen is none
        return +operators


@dataclass(frozen=True)
class Difference:
    """One of our figures beside the published one.

    Args:
        unit: Name of its unit.
        computed: Our figure.
        published: Published figure as printed, '' if there is none.
        decimals: Number of decimals that the source's tool prints. Default: None, all.
    """

    unit: str
    computed: float
    published: str
    decimals: int | None = None

    @property
    def text(self) -> str:
        """The difference in percent, '=' if ours rounds to the printed digits, '' without any."""
        if not self.published:
            return ''
        printed = Decimal(self.published)
        digit = Decimal(1).scaleb(int(printed.as_tuple().exponent))
        figure = self.computed if self.decimals is None else round(self.computed, self.decimals)
        # a half may be rounded either way; a float may lie beside it
        if abs(Decimal(figure) - printed) <= digit * Decimal('0.5000001'):
            return '='
        return f'{100 * (self.computed / float(printed) - 1):+.1f} %'

    @property
    def exists(self) -> bool:
        """Whether ours differs beyond the printed digit."""
        return self.text not in ('', '=')


@dataclass(frozen=True)
class Row:
    """A network and its published figures, which are text as printed.

    Args:
        title: Title of its table.
        convention: Way of counting of its source.
        name: Name of a network that is given by ``model``.
        model: Config of a backbone.
        config: Path of a config below ``configs``, without its suffix.
        family: Name of its line in the plots.
        task: Data set that it was trained on.
        metrics: Name of ``score``.
        source: Publication.
        options: Changes of the config that make it the network which the source counted, by
            dotted keys. Default: none.
        options_why: How it is known that the source counted that network.
        shape: Height and width of the image. Default: that of
            :func:`mmrednet.analysis.networks.build_network`.
        parameters: Parameters that the source counts, 'all' or 'trainable'. Default: 'all'.
        params: Number of parameters in 10^6.
        macs: Number of MACs in 10^9, or of FLOPs if the convention counts those.
        score: Accuracy.
        why: Reason why ours differ, for 'parameters' and 'macs'.
        unexplained: Supposed reason, or what is known, for figures without a reason.
    """

    title: str
    convention: Convention
    name: str = ''
    model: dict[str, Any] | None = None
    config: str = ''
    family: str = ''
    task: str = ''
    metrics: str = 'score'
    source: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    options_why: str = ''
    shape: Sequence[int] | None = None
    parameters: str = 'all'
    params: str = ''
    macs: str = ''
    score: str = ''
    why: Mapping[str, str] = field(default_factory=dict)
    unexplained: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its key in the file of counts."""
        return self.config or self.name

    def build(
        self, root: Path, options: Mapping[str, Any] | None = None
    ) -> tuple[ImageNetwork, Sequence[int]]:
        """Return the network and (H, W) of its image. A backbone gets ImageNet's classifier.

        Args:
            root: Root of the repository.
            options: Changes of the config. Default: None.
        """
        if self.model is None:
            path = str(root / f'configs/{self.config}.py')
            network, shape = build_network(path, options=dict(options or {}))
        else:
            network, shape = build_network(
                {'init_cfg': None, **self.model}, classes=IMAGENET_CLASSES
            )
        return network, self.shape or shape

    def count(self, root: Path) -> dict[str, Any]:
        """Return shape, parameters and counts of operators, in exact integers.

        'visible' has the counts that the source's tool sees, if it does not see all. Where the
        source counted the network of other ``options``, 'published' has the counts of that.

        Raises:
            RuntimeError: An operator has no handle, or a part of the network never ran.
        """
        counts = self._count(root)
        if self.options:
            counts['published'] = self._count(root, self.options)
        return counts

    def _count(self, root: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        network, shape = self.build(root, options)
        if self.convention.resize:
            network.register_forward_hook(_resized)
        complexity = count_network(network, torch.zeros(1, 3, *shape))
        problems = missing(describe(complexity, network, name=self.key, shape=shape))
        if problems:
            raise RuntimeError(f'{self.key} cannot be counted wholly. {" ".join(problems)}')
        parameters = complexity.parameters()
        counts: dict[str, Any] = dict(
            shape=list(shape),
            all=parameters.all,
            trainable=parameters.trainable,
            operators=dict(sorted(complexity.counts[''].items())),
        )
        if self.convention.modules:
            counts['visible'] = dict(sorted(self.convention.visible(complexity).items()))
        return counts

    def differences(self, counts: Mapping[str, Any]) -> dict[str, Difference]:
        """Return the difference of each figure: of the parameters and of MACs or FLOPs.

        Args:
            counts: Result of :meth:`count`.
        """
        counts = counts.get('published', counts)
        operators = counts.get('visible', counts['operators'])
        mega, giga = counts[self.parameters] / 1e6, self.convention.giga(operators)
        decimals = self.convention.decimals
        return {
            'parameters': Difference('parameters', mega, self.params, decimals),
            'macs': Difference(self.convention.unit, giga, self.macs, decimals),
        }


def _resized(_: nn.Module, inputs: tuple[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs of a segmenter with its logits in the size of the image."""
    size = inputs[0].shape[-2:]
    return [F.interpolate(outputs[0], size=size, mode='bilinear'), *outputs[1:]]


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file such as ``docs/model_zoo.yml``.

    Raises:
        ValueError: A convention counts something unknown, two rows have one name, a note is empty,
            belongs to no figure, or to one that has another note, or changes of a config have no
            reason.
    """
    data = yaml.safe_load(path.read_text())
    conventions = {name: Convention(**entry) for name, entry in data['conventions'].items()}
    rows = []
    for group in data['groups']:
        for entry in group['rows']:
            # a row states what differs from its group
            values = {**group, **entry}
            del values['rows']
            values['convention'] = conventions[values['convention']]
            if 'source' in values:
                values['source'] = data['sources'][values['source']]
            row = Row(**values)
            check_count(row.convention.count)
            _check_notes(row)
            check_options(row)
            rows.append(row)
    keys = Counter(row.key for row in rows)
    repeated = [key for key, count in keys.items() if count > 1]
    if repeated:
        raise ValueError(f'rows must have names of their own, got {repeated} in {path}.')
    return rows


def check_options(row: Row) -> None:
    """Check that a row says how the settings of the source's network are known.

    Raises:
        ValueError: It does not, or has no such settings.
    """
    if bool(row.options) != bool(row.options_why):
        raise ValueError(
            f'{row.key}: options and options_why must be given together, got '
            f'{dict(row.options)} and {row.options_why!r}.'
        )


def _check_notes(row: Row) -> None:
    names = [*row.why, *row.unexplained]
    texts = [*row.why.values(), *row.unexplained.values()]
    has_unknown = not set(names) <= set(FIGURES)
    has_repeated = len(set(names)) < len(names)
    if has_unknown or has_repeated or not all(text.strip() for text in texts):
        raise ValueError(
            f'{row.key}: why and unexplained must have texts for some of {FIGURES}, each of its '
            f'own, got {dict(row.why)} and {dict(row.unexplained)}.'
        )
