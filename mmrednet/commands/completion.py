"""Print the completion of ``mmrednet`` for bash or zsh.

bash: eval "$(mmrednet completion bash)" in ~/.bashrc. zsh: the same with zsh in ~/.zshrc, after
compinit. Commands, options, choices, names of configs and files are completed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from ..cli import COMMANDS, load
from ..config_names import config_names
from .parser import CommandParser

# A colon splits the words of bash: what it completes begins after the last one. Where no word fits,
# -o default lets the shell complete files.
SCRIPT = """
_mmrednet() {{
    local IFS=$' \\t\\n' current="${{COMP_WORDS[COMP_CWORD]}}" words= word=
    if [[ $COMP_CWORD -eq 1 ]]; then
        words='{commands}'
    elif [[ $current == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    else
        # the word with its colons, from the line
        current="${{COMP_LINE:0:$COMP_POINT}}"
        current="${{current##*[[:space:]]}}"
        # many names: only after their first letter
        [[ -z $current ]] || words='{configs}'
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{choices}
        esac
    fi
    # not by compgen, which takes no prefix in zsh
    COMPREPLY=()
    for word in $words; do
        [[ $word != "$current"* ]] || COMPREPLY+=("$word")
    done
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{current%"${{current##*:}}"}}"}}")
    fi
}}
complete -o default -F _mmrednet mmrednet
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('completion', __doc__)
    parser.add_argument('shell', choices=['bash', 'zsh'])
    return parser


def flatten(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of the parsers below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from flatten(child)


def branches(name: str) -> tuple[str, list[str]]:
    """Return the lines of the script for a command: its options, and the choices of each."""
    actions = list(flatten(load(name).make_parser()))
    options = [option for action in actions for option in action.option_strings]
    choices = []
    for action in actions:
        # the first argument of a command follows its name
        words = action.option_strings or [name]
        if action.choices:
            pattern = '|'.join(f"'{name} {word}'" for word in words)
            values = ' '.join(map(str, action.choices))
            choices.append(f"            {pattern}) words='{values}' ;;")
    return f"            {name}) words='{' '.join(options)}' ;;", choices


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    option_lines, choice_lines = [], []
    for name in COMMANDS:
        options, choices = branches(name)
        option_lines.append(options)
        choice_lines += choices
    text = SCRIPT.format(
        commands=' '.join(COMMANDS),
        options='\n'.join(option_lines),
        configs=' '.join(config_names()),
        choices='\n'.join(choice_lines),
    )
    # zsh runs scripts of bash
    return 'autoload -U +X bashcompinit && bashcompinit' + text if shell == 'zsh' else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    print(script(args.shell))
