#!/usr/bin/env python3
"""Writes tests/fixtures/jinja/snippets.json: pieces of chat templates and the text that transformers renders from each.

    pip install transformers==5.23.0 jinja2==3.1.6
    python tests/reference/templates.py

Every snippet is rendered with the same row by transformers' own environment (ImmutableSandboxedEnvironment, trim_blocks,
lstrip_blocks, loop controls, `tojson`, `raise_exception`, `strftime_now`, the `generation` tag), on a fixed day. If
Python raises an exception, the file records it. ft must report what it does not support as an error, never render other text.
"""

import datetime
import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils as utils

MESSAGES = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "what is the weather?"},
    {"role": "assistant", "content": "sunny", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "é": [1.5, None, True]}}}]},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "Gets é \"x\" <b>'s",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string", "enum": ["x", "y"]},
                    "b": {"type": "array", "items": {"type": "number"}},
                    "c": {"type": "integer", "default": 2},
                },
                "required": ["a"],
            },
        },
    }
]
ROW = {"messages": MESSAGES, "tools": TOOLS, "variables": {"bos_token": "<s>", "enable_thinking": False, "none_value": None, "number": 12345678901234567890, "real": 1e22}}

SNIPPETS = r"""
{{ 'abc'.upper() }}{{ 'ABC'.lower() }}{{ 'a bC-d'.title() }}{{ 'aBC'.capitalize() }}{{ 'aBc'.swapcase() }}{{ 'ABC'.casefold() }}
{{ 'ßtraße'.capitalize() }}{{ 'ßa ŉb'.title() }}{{ 'ÄÖ'.lower() }}{{ 'straße'.upper() }}{{ 'ὈΔΥΣΣΕΎΣ'.lower() }}
{{ 'abc'.startswith('ab') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('bc') }}{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith('b', 0, 2) }}
{{ 'abcabc'.find('c') }}{{ 'abcabc'.rfind('c') }}{{ 'abc'.find('z') }}{{ 'abc'.index('b') }}{{ 'éabc'.find('b') }}{{ 'abcabc'.find('a', 1) }}
{{ 'abc'.index('z') }}
{{ 'banana'.count('an') }}{{ 'banana'.count('') }}{{ 'aaa'.count('aa') }}{{ 'banana'.count('a', 2) }}
{{ 'abab'.replace('a', 'x') }}{{ 'abab'.replace('a', 'x', 1) }}{{ 'ab'.replace('', '-') }}{{ 'abab'.replace('a', 'x', 0) }}{{ 'aé'.replace('é', '') }}
{{ ' \t x \n'.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.lstrip('yx') }}|{{ 'axx\n'.rstrip('\nx') }}|{{ ' x '.lstrip() }}|{{ ' x '.rstrip() }}|
{{ 'a  b c'.split() }}{{ 'a,b,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ ' a  b  c '.split(none, 1) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'a,b'.split(sep=',') }}{{ 'a b c'.split(maxsplit=1) }}
{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ 'a,b,c'.rsplit(',') }}{{ 'abc'.rsplit('x') }}
{{ 'a</think>\n\nb</think>c'.split('</think>')[-1].lstrip('\n') }}{{ 'x'.split('</think>')[0] }}
{{ 'a'.split('') }}
{{ 'k=v=w'.partition('=') }}{{ 'k=v=w'.rpartition('=') }}{{ 'kv'.partition('=') }}{{ 'kv'.rpartition('=') }}
{{ 'a\nb\r\nc\rd\x0be\u2028f'.splitlines() }}{{ 'a\nb\n'.splitlines(true) }}{{ ''.splitlines() }}{{ 'a\n'.splitlines(keepends=True) }}
{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.txt'.removesuffix('.txt') }}{{ 'abc'.removeprefix('b') }}
{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}{{ '+7'.zfill(4) }}{{ 'abcd'.zfill(2) }}
{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }}|{{ 'a'.center(4) }}|{{ 'ab'.center(5) }}|{{ 'a'.center(6, '*') }}|{{ 'a'.ljust(3, '.') }}|{{ 'abc'.center(2) }}|
{{ ', '.join(['a', 'b']) }}{{ ''.join([]) }}{{ '-'.join('abc') }}{{ '|'.join({'x': 1, 'y': 2}) }}
{{ ','.join([1, 2]) }}
{{ 'a\tb'.expandtabs() }}|{{ 'a\tb'.expandtabs(4) }}|{{ 'abc\tb\n\tc'.expandtabs(2) }}|
{{ '12'.isdigit() }}{{ '1a'.isdigit() }}{{ ''.isdigit() }}{{ 'ab'.isalpha() }}{{ 'éä'.isalpha() }}{{ 'a1'.isalnum() }}{{ 'a b'.isalnum() }}{{ '١٢'.isdecimal() }}{{ '12'.isnumeric() }}
{{ 'AB'.isupper() }}{{ 'Ab'.isupper() }}{{ 'ab1'.islower() }}{{ '1'.islower() }}{{ ' \n'.isspace() }}{{ ''.isspace() }}{{ 'é'.isascii() }}{{ 'a\n'.isprintable() }}
{{ 'a'.encode() }}
{{ 'Hello World'.istitle() }}
{{ '{} and {}'.format('a', 1) }}{{ '{1}{0}'.format('a', 'b') }}{{ '{x}'.format(x=2) }}{{ '{{}}{}'.format(none) }}
{{ '{0.role}{0[content]}'.format(messages[0]) if false else '{0[content]}'.format(messages[0]) }}{{ '{!r}'.format('a') }}{{ '{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c') }}
{{ '{:05d}|{:+d}|{:,}|{:_}|{:x}|{:#x}|{:b}|{:o}'.format(42, 42, 1234567, 1234567, 255, 255, 5, 8) }}
{{ '{:.2f}|{:10.3f}|{:e}|{:.3g}|{:%}|{:,.2f}|{}'.format(3.14159, 2.5, 12345.678, 0.00012345, 0.25, 1234567.891, 1.0) }}
{{ '{:*^7}|{:0>4}|{:06.2f}|{:<4}|{: d}'.format('ab', 7, -1.5, 3, 4) }}
{{ '{} {}'.format(1) }}
{{ '%s-%s' % ('a', 1) }}{{ '%d' % 3 }}{{ '%5d|%-5d|%05d' % (42, 42, 42) }}{{ '%.2f' % 1.005 }}{{ '%s' % [1, 2] }}{{ '%s' % none }}{{ '%%' % () }}
{{ '%x|%X|%o|%#x' % (255, 255, 8, 255) }}{{ '%e|%g|%G' % (12345.678, 0.00001, 1e20) }}{{ '%5s|%-5s|%.2s' % ('ab', 'ab', 'abcdef') }}{{ '%r' % 'a' }}{{ '%c%c' % ('a', 66) }}
{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} }}{{ '%+d|% d' % (3, 4) }}{{ '%*d' % (5, 42) }}{{ '%d' % 3.7 }}{{ '%s' % true }}
{{ '%s %s' % 'a' }}
{{ 'a' % 'b' }}
{{ '%d' % 'x' }}
{{ '%s is %d'|format('a', 3) }}{{ '%(x)s'|format(x=1) }}{{ '%.1f%%'|format(12.345) }}
{{ 'héllo'[1:3] }}{{ 'héllo'[-1] }}{{ 'hello'[::-1] }}{{ 'hello'[::2] }}{{ 'hello'[10:] }}{{ 'hello'[-3:-1] }}{{ 'hello'[3:1] }}{{ 'hello'[3:1:-1] }}{{ 'hello'[:] }}{{ 'hello'[-100:2] }}
{{ [1,2,3,4][1:] }}{{ [1,2,3,4][:-1] }}{{ [1,2,3,4][::2] }}{{ [1,2,3,4][::-2] }}{{ (1,2,3)[1:] }}{{ [1,2,3][5:] }}{{ [1,2,3][-1] }}{{ [1,2,3][1:none] }}
{{ messages[1:]|length }}{{ messages[-1].role }}{{ messages[::-1][0].role }}{{ messages[0:0] }}{{ messages[9:]|length }}{{ range(5)[2] }}{{ range(5)[-1] }}
{{ [1,2][5] is defined }}{{ 'ab'[7] is defined }}[{{ [1][3] }}]{{ [1,2]['x'] is defined }}{{ [[1,2],[3]][0][1] }}{{ messages.0.role }}{{ {1: 'x'}[1] }}{{ {true: 'y'}[1] }}
{{ [1][0:1:0] }}
{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ 7 / 2 }}{{ 6 / 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7 // -2 }}{{ -7.5 // 2 }}{{ -7.5 % 2 }}{{ 7.5 % -2 }}{{ 2 ** -1 }}
{{ 2 ** 3 ** 2 }}{{ -2 ** 2 }}{{ 10 - 3 - 2 }}{{ 2 * 3 + 4 }}{{ 2 + 3 * 4 }}{{ (2 + 3) * 4 }}{{ 7 - -2 }}{{ +3 }}{{ (1 + 2) ~ 3 }}{{ 2 * '3' }}{{ 1 ~ 2 * 3 }}
{{ 1.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 1e-7 }} {{ 123456789.123 }} {{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 3.0 * 2 }} {{ 2 ** 0.5 }} {{ 1/3 }} {{ 100.0 }} {{ -0.0 }} {{ 1.5e300 * 1e10 }} {{ 1e308 * 10 }}
{{ 2 ** 70 }} {{ 9223372036854775807 + 1 }} {{ 12345678901234567890123 }} {{ 12345678901234567890123456789012345678901234567890 }} {{ -12345678901234567890123456789012345678901234567890 }} {{ number }} {{ real }} {{ number + 1 }}
{{ 2 ** 200 }}
{{ 0x1F }}{{ 0b101 }}{{ 0o17 }}{{ 1_000 }}{{ 1_0.5_0 }}{{ 1e3 }}{{ 5E-2 }}{{ 00 }}
{{ 1 // 0 }}
{{ 1.0 % 0 }}
{{ true + 1 }}{{ true * 3 }}{{ false == 0 }}{{ true == 1.0 }}{{ not 0 }}{{ -true }}{{ 5 // true }}
{{ 'a' + 1 }}
{{ [1] + (2,) }}
{{ none + 1 }}
{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ 'ab' * 0 }}{{ 'ab' * -1 }}{{ [1] + [2] }}{{ [0] * 2 }}{{ (1,) + (2,) }}{{ (1,) * 2 }}{{ [] * 3 }}
{{ 1 ~ 'a' ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'k': none} ~ nope }}|{{ 'a' 'b' "c" }}
{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ 'Z' < 'a' }}{{ [1,2] < [1,3] }}{{ (1,) < (1,2) }}{{ 1 != 2 }}{{ 2 >= 2 }}{{ 'a' == 'a' }}{{ [] == () }}{{ {} == {} }}{{ {'a':1} == {'a':1.0} }}{{ none == false }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ {} < {} }}
{{ 'a' in 'abc' }}{{ '' in 'abc' }}{{ 'x' not in ['y'] }}{{ 1 in [1.0] }}{{ 'role' in messages[0] }}{{ 'z' in messages[0] }}{{ 2 in (1, 2) }}{{ 3 in range(5) }}{{ 'k' in {'k': 1}.keys() }}{{ 'a' in nope }}{{ not 'a' in 'b' }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ none in 'abc' }}
{{ [1] in {} }}
{{ true and 'x' }}{{ '' or 'd' }}{{ 0 and x.y.z }}{{ 1 or x.y.z }}{{ none or false or 0 }}{{ 'a' and 'b' or 'c' }}{{ not true or true }}{{ not (true and false) }}
[{{ 'x' if false }}][{{ 'x' if true }}][{{ 'a' if false else 'b' if false else 'c' }}][{{ 'a' if nope else 'b' }}][{{ ('x' if false) is defined }}][{{ ('a' if true else 'b') ~ 'c' }}]
{{ 'x' if false else nope }}|{{ (1 if 2 > 1 else 0) + 1 }}|{{ 1 if 1 is odd and 2 is even else 0 }}|{{ 'y' if 'a' in 'abc' and not false else 'n' }}
{{ true }}{{ false }}{{ none }}{{ True }}{{ False }}{{ None }}{{ [true, none, false] }}{{ {'a': true, 'b': none} }}{{ (1, 'x') }}{{ ('x',) }}{{ () }}{{ [] }}{{ {} }}{{ [[], {}, ()] }}
{{ ["it's", 'q"uo\'te', 'a\nb\t\\', 'é☃🙂', '\x01\x7f\xa0\u200b\u2028'] }}{{ [1.0, 1e20, 10, -0.0] }}{{ {1: 2, 'a': {'b': [1]}} }}{{ [nope] }}
{{ messages[2].tool_calls }}{{ tools[0].function.parameters }}
{{ 'a\tb\\n\u00e9\x41\101\U0001F642\'\"\q' }}{{ "a'b" }}{{ 'a"b' }}{{ 'line\
continued' }}
{{ 'é\é' }}
{{ '\N{BULLET}' }}
{{ messages[0].get('nothing', 'd') }}{{ messages[0].get('nothing') }}{{ messages[0].get('role') }}{{ messages[0].keys()|list }}{{ messages[0].values()|list }}{{ messages[0].items()|list }}{{ messages[0].keys() }}{{ messages[0].values() }}{{ messages[0].items() }}{{ messages[0].copy() == messages[0] }}
{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in messages[0]|items %}{{ k }};{% endfor %}{{ messages[0]|dictsort }}{% for k in messages[0] %}{{ k }},{% endfor %}{{ messages[0].items()|length }}
{{ {'keys': 1}.keys() if false else 'n' }}{{ {'items': 3}['items'] }}{{ ({'items': 3}).items is defined }}{{ {'values': 3, 'type': 'x'}.type }}{{ {'a': 1}['items'] is defined }}{{ {'get': 5}['get'] }}{{ messages[0]['role'] }}
{{ {'items': 3}.items }}
{{ dict(a=1, b='x') }}{{ dict({'a': 1}, b=2) }}{{ dict([('a', 1), ('b', 2)]) }}{{ dict() }}{{ dict(messages[0], role='x') }}
{{ {'a': 1, 'a': 2} }}{{ {1: 'a', 1.0: 'b', true: 'c'} }}{{ {'x': 1}.x }}{{ {'a-b': 1}['a-b'] }}{{ {none: 1} }}{{ {(1, 2): 3} }}
{{ {[1]: 2} }}
{{ {'a': 1}.pop('a') }}
{{ [1].append(2) }}
{% set _ = [1].append(2) %}
{{ messages[0].update({'a': 1}) }}
{{ [1,2,1].count(1) }}{{ [1,2].index(2) }}{{ (1,2,1).count(1) }}{{ [3,1]|sort }}{{ ['b','a','C']|sort }}{{ ['b','a','C']|sort(case_sensitive=true) }}{{ [3,1,2]|sort(reverse=true) }}{{ {'b':1,'a':2}|sort }}
{{ [{'n':2,'s':'b'},{'n':1,'s':'c'},{'n':2,'s':'a'}]|sort(attribute='n')|map(attribute='s')|list }}{{ [{'n':2,'s':'b'},{'n':1,'s':'c'},{'n':2,'s':'a'}]|sort(attribute='n,s')|map(attribute='s')|join }}{{ [{'n':2},{'n':1}]|sort(true, attribute='n') }}
{{ [1,'a']|sort }}
{{ [1,1,2,'a','A']|unique|list }}{{ ['a','A']|unique(true)|list }}{{ [{'n':1},{'n':1},{'n':2}]|unique(attribute='n')|list }}{{ 'aab'|unique|join }}
{{ [3,1,2]|min }}{{ [3,1,2]|max }}{{ ['b','A']|min }}{{ []|max is defined }}{{ [{'n':2},{'n':1}]|max(attribute='n') }}{{ 'abc'|max }}
{{ [1,2,3]|sum }}{{ [1.5,2]|sum }}{{ []|sum }}{{ [{'n':2},{'n':1}]|sum(attribute='n') }}{{ [[1],[2]]|sum(start=[]) }}{{ [1]|sum(start=10) }}
{{ [1,2,3]|first }}{{ [1,2,3]|last }}{{ 'abc'|first }}{{ 'abc'|last }}[{{ []|first }}][{{ ''|last }}]{{ {'b':1}|first }}{{ messages|first == messages[0] }}{{ (1,2)|last }}{{ messages|map(attribute='role')|first }}
{{ [1,2,3]|reverse|list }}{{ 'abc'|reverse }}{{ (1,2)|reverse|list }}{{ range(3)|reverse|list }}{% for m in messages|reverse %}{{ m.role }}{% endfor %}
{{ [1,2,3]|reverse }}
{{ [1,2,3]|length }}{{ 'héé'|length }}{{ '🙂a'|count }}{{ {}|length }}{{ nope|length }}{{ range(4)|length }}{{ ()|count }}{{ messages|length }}
{{ none|length }}
{{ 5|length }}
{{ messages|map(attribute='role')|length }}
{{ 'abc'|list }}{{ {'a':1}|list }}{{ nope|list }}{{ range(3)|list }}{{ (1,2)|list }}{{ messages[0].items()|list|length }}
{{ nope|default('d') }}{{ ''|default('d', true) }}{{ ''|default('d') }}|{{ none|default('d') }}{{ none|d('x', true) }}{{ 0|default(5, boolean=true) }}{{ messages[0].zz|default('q') }}{{ nope|default }}|{{ nope|default(none) }}
{{ ['a','b']|join(', ') }}{{ [1,2]|join }}{{ [1,none,true,1.0]|join('-') }}{{ 'abc'|join('.') }}{{ [{'n':1},{'n':2}]|join(',', attribute='n') }}{{ nope|join(',') }}{{ {'a':1,'b':2}|join('+') }}{{ ['a', nope]|join('-') }}
{{ ['a','b']|map('upper')|join(', ') }}{{ messages|map(attribute='role')|list }}{{ messages|map(attribute='nothing', default='z')|list }}{{ tools|map(attribute='function.name')|join(',') }}{{ [[1,2],[3,4]]|map(attribute=0)|list }}{{ ['1','2']|map('int')|sum }}{{ ['a']|map('replace', 'a', 'b')|list }}
{{ messages|map('attr', 'role')|list }}{{ [1.25,2.35]|map('round', 1)|list }}{{ [' a ']|map('trim')|list }}{{ messages|map('length')|list }}{{ [[1],[2]]|map('first')|list }}
{{ messages|map('nofilter')|list }}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|selectattr('role', '==', 'user')|map(attribute='content')|join('/') }}{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='role')|join(',') }}{{ messages|selectattr('tool_calls', 'defined')|list|length }}{{ messages|selectattr('tool_calls')|list|length }}{{ messages|rejectattr('tool_calls', 'undefined')|list|length }}
{{ [1,2,3]|select('odd')|list }}{{ [1,2,3]|reject('odd')|list }}{{ [0,1,'']|select|list }}{{ [0,1,'']|reject|list }}{{ [1,5,9]|select('gt', 3)|list }}{{ ['a','b']|select('in', ['a'])|list }}{{ [1,'a',none]|select('string')|list }}{{ [1,2]|select('divisibleby', 2)|list }}
{% if messages|selectattr('role', 'equalto', 'nobody') %}always{% endif %}{% if messages|selectattr('role', 'equalto', 'nobody')|list %}never{% endif %}{{ (messages|map(attribute='role')) is iterable }}
{{ messages|selectattr('role', 'equalto', 'user') }}
{% for g in messages|groupby('role') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}{% for role, group in messages|groupby('role') %}{{ role }}{{ group[0].content }}{% endfor %}{{ [{'a':1},{'a':2},{'a':1}]|groupby('a')|length }}{{ [{'a':'x'},{'a':'X'}]|groupby('a') }}
{{ [1,2,3,4,5]|batch(2)|list }}{{ [1,2,3]|batch(2, 'x')|list }}{{ [1,2,3,4,5]|slice(2)|list }}{{ [1,2,3]|slice(2, 'x')|list }}
{{ {'b':1,'a':2,'C':3}|dictsort }}{{ {'b':1,'a':2}|dictsort(by='value') }}{{ {'b':1,'a':2,'C':3}|dictsort(true) }}{{ {'b':1,'a':2}|dictsort(reverse=true) }}
{{ '5'|int + 1 }}{{ '1.5'|int }}{{ 'x'|int }}{{ 'x'|int(9) }}{{ 3.9|int }}{{ -3.9|int }}{{ true|int }}{{ none|int }}{{ ' 12 '|int }}{{ '1_000'|int }}{{ '0x1f'|int(base=16) }}{{ 'ff'|int(0, 16) }}{{ '1e3'|int }}{{ 'inf'|int }}
{{ '1.5'|float }}{{ 'x'|float }}{{ 'x'|float(2.5) }}{{ 3|float }}{{ '1e3'|float }}{{ none|float }}{{ ' 2 '|float }}{{ true|float }}
{{ 2.567|round(1) }}{{ 2.5|round }}{{ 3.5|round }}{{ 5|round }}{{ 1234.5678|round(2) }}{{ 2.675|round(2) }}{{ -1.5|round }}{{ 10|round(0, 'floor') }}{{ 7.7|round(method='floor')|int }}{{ 7.2|round(1, 'ceil') }}{{ 7.21|round(method='ceil') }}
{{ -3|abs }}{{ (-3)|abs }}{{ (-2.5)|abs }}{{ true|abs }}
{{ 'x'|abs }}
{{ 'hello world'|capitalize }}{{ 'hello wOrld (foo) [bar]-baz'|title }}{{ 'a'|upper }}{{ 'A'|lower }}{{ none|upper }}{{ 5|lower }}{{ nope|upper }}|{{ "it's"|title }}
{{ ' x '|trim }}|{{ '\n a\n'|trim('\n') }}|{{ 'xxaxx'|trim('x') }}|{{ none|trim }}|{{ nope|trim }}|{{ 5|trim }}|{{ ' a '|trim(chars=none) }}|
{{ 'aXbX'|replace('X', '-') }}{{ 'aXbX'|replace('X', '-', 1) }}{{ 'ab'|replace('', '.') }}{{ 5|replace(5, 6) }}{{ nope|replace('a', 'b') }}{{ none|replace('N', 'n') }}
{{ 'a\nb\n\nc'|indent(4) }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\nb\n'|indent }}|{{ 'a\nb'|indent('> ') }}|{{ 'a\nb'|indent(width=1, first=True) }}|{{ ''|indent }}|
{{ 'a long text with words'|truncate(10) }}|{{ 'a long text with words'|truncate(10, true) }}|{{ 'short'|truncate(3, leeway=0) }}|{{ 'foo bar baz qux'|truncate(11, false, '…', 0) }}|{{ 'foo bar'|truncate(5) }}
{{ 'a b c'|wordcount }}{{ 'one, two--three é'|wordcount }}{{ ''|wordcount }}{{ "it's"|wordcount }}
{{ '<a>&"\''|e }}{{ '<a>'|escape }}{{ '<b>'|safe }}{{ '<b>'|safe|e }}{{ '<b>'|e|e }}{{ '<b>'|forceescape }}{{ ('<b>'|e) ~ '<' }}{{ '<b>'|e|length }}{{ '<b>'|e|upper }}
{{ 'a b&c/d?é'|urlencode }}{{ {'a': 1, 'b c': 'd&e'}|urlencode }}{{ [('x', 'y z')]|urlencode }}
{{ 'x'|string }}{{ 1|string }}{{ 1.0|string }}{{ none|string }}{{ ['a']|string }}{{ true|string }}{{ nope|string }}|{{ {'a': none}|string }}
{{ 'abc'|center(9) }}|{{ 'abc'|center(8) }}|{{ 1|center(4) }}|
{{ tools|tojson }}
{{ tools[0]|tojson(indent=2) }}
{{ tools|tojson(indent=4) }}{{ []|tojson(indent=2) }}{{ {}|tojson(indent=2) }}{{ [[], {}]|tojson(indent=2) }}{{ [1]|tojson(indent=0) }}{{ [1, [2]]|tojson(indent='\t') }}
{{ tools[0].function.parameters|tojson(separators=(',', ':')) }}{{ [1, {'a': 2}]|tojson(indent=1, separators=(' ;', ' = ')) }}
{{ {'b': 1, 'a': 'é<&>\'"', 'c': [1.0, 2.5, 1e20, true, none, 1e-7, 100]}|tojson(sort_keys=true) }}{{ 'é☃🙂\x7f'|tojson(ensure_ascii=true) }}{{ 'é☃'|tojson }}{{ 'é'|tojson(true) }}
{{ 'a/b"\\ \u2028 \x7f \x1f\n\r\t\x08\x0c'|tojson }}{{ (1, 2)|tojson }}{{ {1: 2, 1.5: 3, true: 4, none: 5}|tojson }}{{ none|tojson }}{{ 1.0|tojson }}{{ -0.0|tojson }}{{ number|tojson }}{{ real|tojson }}{{ messages[2].tool_calls[0].function.arguments|tojson }}
{{ 1e999|tojson }}{{ (1e999 - 1e999)|tojson }}{{ (-1e999)|tojson }}
{{ nope|tojson }}
{{ {(1, 2): 3}|tojson }}
{{ range(3)|tojson }}
{{ messages|map(attribute='role')|tojson }}
{{ messages[0].items()|tojson }}
{{ 'a' is string }}{{ {} is mapping }}{{ 'a' is iterable }}{{ [] is sequence }}{{ none is none }}{{ 1 is number }}{{ true is boolean }}{{ 1 is integer }}{{ 1.0 is float }}{{ true is true }}{{ false is false }}{{ 3 is odd }}{{ 4 is even }}{{ 4 is divisibleby(2) }}{{ 4 is divisibleby 3 }}{{ 'a' is in ['a'] }}{{ 1 is eq(1) }}{{ 1 is ne 2 }}{{ 1 is sameas(1) }}{{ nope is undefined }}{{ 'A' is upper }}{{ 'a' is lower }}{{ 1 is lt(2) }}{{ 2 is ge 2 }}{{ 2 is greaterthan 1 }}
{{ none is iterable }}{{ none is string }}{{ 1 is iterable }}{{ {} is iterable }}{{ {} is sequence }}{{ 'x' is sequence }}{{ nope is iterable }}{{ nope is mapping }}{{ nope is none }}{{ nope is string }}{{ true is number }}{{ true is integer }}{{ 1.0 is integer }}{{ range(2) is sequence }}{{ range is callable }}{{ 'a' is callable }}{{ (1,) is sequence }}{{ nope is sequence }}{{ '1' is number }}
{{ '<b>'|safe + '<i>' + '&' }}{{ '<' + '<b>'|safe }}{{ ('<'|e) + ('<'|safe) }}{{ ('<'|e) * 2 }}{{ 2 * ('<'|safe) }}{{ ('<'|safe) ~ '<' }}{{ "it's "|safe + {'a': '<'}|tojson }}
{{ ('<'|safe) - 1 }}
{{ ('<'|safe) + 1 }}
{{ none|selectattr('a')|list }}{{ none|map('upper')|list }}{{ x|reject('odd')|list }}{{ 0|select('nothing')|list }}{{ ''|map(attribute='a')|list }}{{ none|rejectattr('a', 'equalto', 1)|list|length }}
{{ none|unique|list }}
{{ 1 is not string }}{{ not 1 is string }}{{ messages[0].content is not none and messages[0].content is not mapping }}{{ x is not defined }}{{ messages[0].x is defined }}{{ messages[0]['role'] is defined }}{{ 'a' is not in 'b' }}{{ none is not none }}{{ true is sameas true }}{{ 1 is sameas true }}{{ none is sameas none }}{{ enable_thinking is defined and enable_thinking is false }}{{ none_value is none }}{{ 'upper' is filter }}{{ 'zzz' is filter }}{{ '<' is escaped }}{{ ('<'|e) is escaped }}
{{ 1 is nosuchtest }}
{{ 1.5 is odd }}{{ 'a' is odd }}
[{{ messages[0].nothing }}][{{ nope|length }}][{% for x in nope %}y{% endfor %}][{{ nope or 'd' }}][{{ nope == none }}][{{ nope == nope2 }}][{{ not nope }}][{{ nope is defined }}][{{ messages[9] is defined }}][{{ nope ~ 'x' }}][{{ nope in [1] }}][{{ [nope]|length }}][{{ nope != 1 }}]
{{ messages[0].nothing.deeper }}
{{ nope.deeper }}
{{ nope['deeper'] }}
{{ nope() }}
{{ 'a' + nope }}
{{ nope + 'a' }}
{{ nope < 1 }}
{{ -nope }}
{{ messages[0].nothing() }}
{{ 'a'.nothing() }}
{{ messages[0].content.nothing }}|{{ none.x }}|{{ 5 .x }}|{{ [].x }}|
{{ 'abc'.__class__ }}|
{{ ''.__class__.__mro__ }}
{{ 1 + 2 ~ 3 }}
{{ {**messages[0]} }}
{{ messages.__class__ is defined }}
{%- set ns = namespace(n=0, seen=false) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.n = ns.n + 1 -%}{%- set ns.seen = true -%}{%- endif -%}{%- endfor -%}{{ ns.n }}{{ ns.seen }}{{ ns.nothing is defined }}{{ ns['n'] }}
{% set ns = namespace({'a': 1}, b=[]) %}{% set ns.b = ns.b + [2] %}{{ ns.a }}{{ ns.b }}{{ ns }}{% set ns.c %}block{% endset %}{{ ns.c }}
{% set x = {} %}{% set x.a = 1 %}{{ x }}
{%- set ns = namespace(i=-1) -%}{%- for m in messages[::-1] -%}{%- set k = (messages|length - 1) - loop.index0 -%}{%- if m.role == 'user' -%}{%- set ns.i = k -%}{%- break -%}{%- endif -%}{%- endfor -%}{{ ns.i }}
{%- for m in messages -%}{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}{{ loop.index }}{%- endfor -%}
{% break %}
{%- for m in messages -%}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }};{%- endfor -%}
{%- for m in messages -%}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('x', 'y') }}{{ loop.changed(m.role) }}{{ loop.changed(1) }}|{%- endfor -%}
{% for a in [1,2] %}{% for b in 'xy' %}{{ loop.index }}{{ a }}{{ b }}{% endfor %}{{ loop.index }}{% endfor %}{{ loop is defined }}
{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}
{% set x = 1 %}{% for m in messages %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}{% with x = 5 %}{{ x }}{% set x = 6 %}{{ x }}{% endwith %}{{ x }}
{% for i in [1,2] %}{% if i == 1 %}{% set y = 5 %}{% endif %}[{{ y }}]{% endfor %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% set a = 7 %}{% with a = 1, b = a %}{{ b }}{% endwith %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for i, (x, y) in [(1, (2, 3))] %}{{ i }}{{ x }}{{ y }}{% endfor %}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}{% set t = 1, 2 %}{{ t }}{% set a, b = b, a %}{{ a }}{{ b }}
{% set a, b = [1] %}
{% for a, b in [1, 2] %}{% endfor %}
{%- set c -%} hi {{ messages|length }} {%- endset -%}[{{ c }}]{%- filter upper -%} ab {%- endfilter -%}{% set d | upper | trim %} hi {% endset %}[{{ d }}]{% filter replace('a', 'b')|upper %}xaz{% endfilter %}
{% set s %}x{% set inner = 1 %}{% endset %}{{ inner is defined }}{{ s }}{{ s is string }}{{ s + 'y' }}
{%- macro tag(name, shut=false) -%}<{{ '/' if shut }}{{ name }}>{%- endmacro -%}{{ tag('a') }}{{ tag('a', shut=true) }}{{ tag(name='b') }}{{ tag('c')|upper }}{{ tag('d') is string }}
{%- macro t(s) -%}{%- if s.type == 'object' -%}{ {%- for k, v in s.properties.items() -%}{{ k }}:{{ t(v) }}{{ ',' if not loop.last }}{%- endfor -%} }{%- elif s.type == 'array' -%}[{{ t(s['items']) }}]{%- else -%}{{ s.type }}{%- endif -%}{%- endmacro -%}{{ t(tools[0].function.parameters) }}
{% macro m(a, b=a, c='x') %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3, 4, 5, z=6) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}[{{ a }}]{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m(*[1]) }}{{ m(**{'a': 2}) }}
{% macro f() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ f() }}{% set x = 2 %}{{ f() }}{% for x in [3] %}{{ f() }}{% endfor %}
{%- macro box(t) -%}<{{ t }}>{{ caller() }}</{{ t }}>{%- endmacro -%}{%- call box('q') -%}in{%- endcall -%}{% macro each(l) %}{% for i in l %}{{ caller(i, loop.index) }}{% endfor %}{% endmacro %}{% call(x, n=0) each([7, 8]) %}<{{ x }}{{ n }}>{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}{% set f = b %}{{ f() }}
{% for m in [{'n':1,'c':[{'n':2,'c':[{'n':3,'c':[]}]}]}] recursive %}{{ loop.depth }}{{ m.n }}{{ loop(m.c) }}{% endfor %}
{% set pipe = joiner('|') %}{% for m in messages %}{{ pipe() }}{{ m.role }}{% endfor %}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner() %}{{ j() }}{{ j() }}
{{ range(1, 10, 3)|list }}{{ range(3) }}{{ range(5, 0, -2)|list }}{{ range(2, 5) }}{{ range(0)|list }}{{ range(0, 6, 2) }}
{{ range(100001) }}
{{ range(1, 2, 0) }}
{% raw %}{{ not }} {% if %}{% endraw %}{%- raw -%}  x  {%- endraw -%}|
{# a comment #}a{#- b -#} c {#+ d +#}|
{{ 'a' # no comment }}
{% if 0 %}a{% elif '' %}b{% elif [] %}c{% elif {} %}d{% elif 0.0 %}e{% elif none %}f{% elif nope %}g{% else %}h{% endif %}{% if '0' and [0] and {1: 2} and -1 and ' ' %}true{% endif %}{% if namespace() and range(1) %}n{% endif %}{% if range(0) %}x{% endif %}
{% generation %}a{% set z = 1 %}{% endgeneration %}{{ z is defined }}{%- for m in messages -%}{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{% endgeneration %}{%- endif -%}{%- endfor -%}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%A %B %-d') }} {{ strftime_now('%H:%M:%S %p %I %j %y %U %W %w %a %e|%F|%T|%D|%x|%X|%c|%%') }}
{{ raise_exception('no: ' ~ messages[0].role) }}
{% if false %}{{ raise_exception('no') }}{% endif %}ok
{{ messages[0].content | trim | upper ~ '!' }}{{ -1|abs }}{{ not none|default(false) }}{{ 1 + 2|float }}{{ (1 + 2)|string + 'x' }}{{ messages|length > 2 and 'many' }}{{ [1,2,3]|sum // 2 }}
{{ {'a': {'b': {'c': [10, 20]}}}.a.b.c[1] }}{{ messages[0]['con' ~ 'tent'] }}{{ [messages[0], 1][0].role }}{{ ('a', 'b')[1] }}{{ 'abc'.upper()[1] }}{{ 'a b'.split()[1].upper() }}{{ {'f': 'x'}['f'].upper() }}
{{ (messages|length)|string ~ 'x' }}{{ ('a' if messages|length > 99 else 'b')|upper }}{{ "a" if messages[0]["role"] == "system" else "b" }}{{ messages|map(attribute="role")|join(", ")|upper }}
{% set first, rest = messages[0], messages[1:] %}{{ first.role }}{{ rest|length }}{% set offset = 1 if messages[0]['role'] == 'system' else 0 %}{{ offset }}{% if (messages[1]['role'] == 'user') != (1 % 2 == offset) %}bad{% else %}good{% endif %}
{{ bos_token }}{{ eos_token }}{{ bos_token + 'x' }}{{ documents is none }}{{ add_generation_prompt }}{{ tools is not none }}{{ tools|length }}
{%- set tool_call = messages[2].tool_calls[0] %}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}{{- '{"name": "' ~ tool_call.name ~ '", "arguments": ' ~ (tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson) ~ '}' }}
{% for k, v in messages[2].tool_calls[0].function.arguments|items %}{{ k }}={{ v|tojson if v is not string else v }};{% endfor %}{% for k, v in tools[0].function.items() if k != 'name' %}{{ k }}{{ ',' if not loop.last }}{% endfor %}
{% do messages %}x
{% block a %}x{% endblock %}
{% include 'x' %}
{% trans %}x{% endtrans %}
{{ lipsum() }}
{{ messages|random }}
{{ 'abc'|pprint }}
{{ 'abc'|nofilter }}
{{ ''|filesizeformat }}
{% autoescape true %}{{ '<' }}{% endautoescape %}
{{ x.y
{{ 'abc }}
{% if true %}
{{ 1 + }}
{{ (1, 2 }}
{{ {'a' 1} }}
{% for x in %}{% endfor %}
{% set 1 = 2 %}
{% endif %}
{{ a b }}
{{ 1 if }}
{{ [1,2,] }}{{ (1,2,) }}{{ {'a':1,} }}{{ dict(a=1,) }}
{{ f(a=1, 2) }}
{{ x is defined is true }}
{{ {1, 2} }}
{{ [x for x in y] }}
{{ lambda: 1 }}
{{ 'a' if true else }}
{{ loop }}
{{ range }}
{% macro m() %}x{% endmacro %}{{ m }}
{{ namespace(a=1) == namespace(a=1) }}{{ joiner is defined }}{{ cycler is callable }}
{{ cycler() }}
{{ dict(1) }}
{% set x = 'a' %}{% set x = x ~ 'b' %}{% if x == 'ab' %}{% set x = x * 2 %}{% endif %}{{ x }}{% for c in x %}{{ c }}{{ '.' if not loop.last }}{% endfor %}
{{ '\n'.join(['a', 'b']) }}{{ "a\nb".split("\n") }}{{ 'x'.join([]) }}|{{ 'a'.join('b') }}
{{ ("a", "b") | join("+") }}{{ [["k", 1]] | map("first") | join }}{{ [1, 2, 3] | map("string") | map("zfill", 2) | list if false else "" }}
{{ messages | selectattr("role", "in", ("user", "assistant")) | map(attribute="content") | list | tojson }}
{{ 'A' < 'a' }}{{ 'é' > 'z' }}{{ '10' < '9' }}{{ [] < [1] }}{{ true < 2 }}{{ 1.5 >= 1 }}{{ '' < 'a' }}
{{ 3 is divisibleby 0 }}
{{ 12345678901234567890 % 7 }}{{ 12345678901234567890 // 7 }}{{ 12345678901234567890 == 12345678901234567890.0 }}{{ 5.0 // 2 }}{{ 5 % 2.5 }}{{ 1e300 * 1e300 }}{{ 0.1 * 3 }}{{ 1e22 + 1 }}{{ 4.35 * 100 }}
{{ '%.3f' % 2.0005 }}{{ '%5.1f|%-8.2e|%+.1f|%g|%g|%g' % (3.14159, 12345.678, 2.0, 100000, 1000000, 0.0001) }}{{ '%s%%' % 5 }}{{ '%i' % true }}
"""

# Snippets of several lines, and those whose whitespace matters.
BLOCKS = {
    "trim and lstrip": "{% if true %}\nx\n{% endif %}\ny\n   {% if true %}\n  z\n   {% endif %}\n{#- c -#}\n w",
    "plus signs": "a\n  {%+ if true %}b{% endif %}\n\t{# note #}\n {%- if true -%} c {%- endif +%}\n  {{- ' d' -}}  \n e\n",
    "tabs": "{% for m in messages %}\n\t\t{% if true %}\n\t{{ m.role }}\n\t\t{% endif %}\n{% endfor %}",
    "line ends": "a\r\n{% if true %}\r\nb\r\n{% endif %}\rc\r\n",
    "one line end goes": "a\n\n\n",
    "expression keeps its line": "a\n  {{ 1 }}\n  {{ 2 }}\nb",
    "text before a tag": "a {% if true %} b {% endif %} c",
    "comment lines": "a\n{# x #}\nb\n  {# y #}\nc {# z #}\nd",
    "comment over lines": "a\n{# x\n y #}\nb",
    "raw lines": "a\n{% raw %}\nx\n{% endraw %}\nb\n  {%- raw %} y {% endraw -%}\n c",
    "set lines": "{% set a = 1 %}\n{% set b = [\n 1,\n 2,\n] %}\n{{ a }}{{ b }}\n",
    "expression over lines": "{{ 'a'\n  ~ 'b' }}{%- set x = {\n 'a': 1,\n 'b': [1,\n2,],\n} -%}{{ x }}",
    "macro lines": "{% macro m(x) %}\n  [{{ x }}]\n{% endmacro %}\n{{ m(1) }}\n{{ m(2) }}\n",
    "call lines": "{% macro m() %}\n<{{ caller() }}>\n{% endmacro %}\n{% call m() %}\n in\n{% endcall %}\nend",
    "nested loops": "{% for m in messages %}\n{% for c in m.role[:2] %}\n{{ c }}\n{% endfor %}\n{% endfor %}\n",
    "generation lines": "{% for m in messages %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% endfor %}\n",
    "dashes": "a  {{- 1 -}}  b\n{{- 2 }}\n{{ 3 -}}\n\n c",
    "braces in text": "{ a } }} %} {{ '}}' }} {{ '{%' }} {{ {'a': {'b': 1}} }}",
    "empty": "",
    "only text": "no tags at all",
    "unicode spaces": "a\u00a0{%- if true -%}\u2003b{%- endif -%}\u3000c",
    "minus number": "{{ 3 -1 }}{{ 3 - 1 }}{{ 3-1 }}{{ [1,-1] }}",
    "percent at end": "{{ 50 % 7 }}%{{ '%' }}",
    "set block lines": "{% set x %}\n  a\n{% endset %}\n[{{ x }}]",
    "filter lines": "{% filter upper %}\n a\n{% endfilter %}\nb",
    "if in middle of line": "x {% if true %}\ny\n{% endif %} z\n",
    "tag after text on its line": "x\n  y {% if true %}\n  z\n  {% endif %}w",
    "for else lines": "{% for x in [] %}\na\n{% else %}\nb\n{% endfor %}\nc",
    "with lines": "{% with %}\n{% set a = 1 %}\n{{ a }}\n{% endwith %}\n{{ a }}|",
}


class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29, 0, 0, 0)


def render(source):
    utils.datetime = Day
    try:
        texts, _ = utils.render_jinja_template(
            conversations=[MESSAGES], tools=TOOLS, chat_template=source, add_generation_prompt=False, **ROW["variables"]
        )
        # The output contains an address or a random value and differs each time.
        if " at 0x" in texts[0] or "lipsum" in source or "random" in source:
            return {"error": "another text each time"}
        return {"text": texts[0]}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}


def main():
    lines = SNIPPETS.strip("\n").split("\n")
    snippets, open_ = [], ""
    for line in lines:
        # A backslash at the end of a line joins it with the next one, to put a line break into a string.
        open_ += line
        if line.endswith("\\"):
            open_ += "\n"
            continue
        snippets.append((f"{len(snippets):03}", open_))
        open_ = ""
    table = [{"name": name, "template": source, **render(source)} for name, source in snippets + list(BLOCKS.items())]
    made = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "date": "2024-02-29", "row": ROW, "snippets": table}
    path = Path(__file__).parents[1] / "fixtures/jinja/snippets.json"
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(len(table), "snippets,", sum("error" in s for s in table), "of them errors")


if __name__ == "__main__":
    main()
