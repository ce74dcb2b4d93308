#!/usr/bin/env python3
"""Writes tests/data/templates: what Jinja2, set up by transformers itself, renders.

Usage: python template_goldens.py [output directory]

micro.json holds small templates, each with its variables and the text (or the error) it gives.
families/*.json hold whole chat templates in the style of published models, and what each gives for
the chats and settings of chats.json. The templates are in template_families/ beside this file.
Needs transformers and jinja2 3.1 (see requirements.txt).
"""

import copy
import datetime
import itertools
import json
import pathlib
import sys

import jinja2
import transformers.utils.chat_template_utils as chat_template_utils

HERE = pathlib.Path(__file__).resolve().parent
NOW = datetime.datetime(2025, 7, 4, 15, 6, 7)


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedDatetime


def render(source, variables):
    """{"text": ...} or {"error": the exception's type[, "raised": its message]}."""
    try:
        text = chat_template_utils._compile_jinja_template(source).render(**copy.deepcopy(variables))
        text.encode("utf-8")
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        result = {"error": type(error).__name__}
        if type(error) is jinja2.exceptions.TemplateError:
            result["raised"] = str(error.message)
        return result
    except Exception as error:  # whatever Python raises is an error for us too
        return {"error": type(error).__name__}


# ---- micro cases ----

VARIABLES = {
    "s": "Hello, World", "u": "Grüße, 世界 🌍!", "e": "", "n": 7, "neg": -7, "f": 2.5, "z": 0,
    "t": True, "fa": False, "none": None, "null": None,
    "l": [3, 1, 2], "el": [], "ed": {}, "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
    "d": {"b": 2, "a": 1, "C": 3, "nested": {"x": [10, 20]}},
    "users": [{"name": "bob", "age": 30, "tags": ["x"], "active": True},
              {"name": "Alice", "age": 25, "tags": [], "active": False},
              {"name": "carol", "age": 30, "active": True}],
    "messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "hi"},
                 {"role": "assistant", "content": "yo"}, {"role": "user", "content": "bye"}],
    "items_dict": {"items": "shadowed", "keys": 1, "x": 2, "pop": 3, "get": 4},
    "text": "line one\nline two\n\n  indented\r\nlast", "html": "<a href=\"x\">'&'</a>",
    "weird": "a'b\"c\\d\n\t\r\x00\x1b\x7f\u00a0\u200b\u2028\ufeff\U0001F600é", "spaces": "  \t pad \n ",
    "many": {f"k{i:02}": i for i in range(30)},
}

EXPRESSIONS = r"""
1|2.0|1e3|1.5e-7|1e16|1e15|123456789012345680.0|0.1 + 0.2|1/3|2/1|7//2|-7//2|7//-2|7%3|-7%3|7%-3|-7.5%2|7.5//2|-7.5//2
2**10|2**-1|2.0**0.5|-2**2|2**3**2|10**18|1_000|0x1F|0o17|0b101|1e400|-1e400|1e400 - 1e400|0.0|-0.0|1e22|1e21|123456.789|5e-324|1.7976931348623157e308
true|false|none|True|False|None|true + true|-true|not true|not not 5|+3|- -3|1 == 1.0|1 == true|'1' == 1|none == false|[] == []|[1] == (1,)|{} == {}
1 < 2 < 3|1 < 3 < 2|3 > 2 >= 2|1 < 2 > 1|'a' < 'b'|'a' < 'B'|[1,2] < [1,3]|(1,) < (1,2)|1 != 2|'é' < 'z'|1.5 < 2|true < 2
'a' in 'abc'|'' in 'abc'|'d' in 'abc'|1 in [1,2]|true in [1]|'b' in d|'zz' in d|3 in range(5)|none in [none]|'x' not in 'abc'|1 not in l
'a' ~ 1 ~ none ~ true ~ 1.0|'a' + 'b'|'ab' * 3|3 * 'ab'|[1] * 3|[1] + [2]|(1,) + (2,)|'x' * 0|'x' * -1|'a' 'b' "c"|'a' ~ [1,'b'] ~ {'k': none}
1 and 2|0 and 2|0 or 'x'|'' or none|1 or 2|none and 1|not none and 1|1 if true|1 if false|1 if false else 2|1 if true else 2 if false else 3|('a' if false) ~ 'b'
[]|[1, 'two', none, true, 2.5]|[1,]|()|(1,)|(1, 2)|1, 2|{}|{'a': 1, 'b': [1, {'c': none}]}|{1: 'a', none: 'b', true: 'c', 1.5: 'd'}|{'a': 1, 'a': 2}|{1: 'a', 1.0: 'b', true: 'c'}
s[0]|s[-1]|s[100]|s[1:4]|s[:3]|s[3:]|s[-3:]|s[::2]|s[::-1]|s[5:2]|s[5:2:-1]|s[-100:100]|u[0]|u[2]|u[-1]|u[7:9]|u[::-1]|u[::3]|u[-2:]|l[::-1]|l[1:]|l[-1]|l[5]|l[0:2]
l['0']|l.0|l.5|s.0|d.a|d['a']|d.nested.x[1]|d['nested']['x'][-1]|d.missing|d['missing']|d.nested.missing|n.foo|none.foo|s.foo|l.foo|range(5)[1:3]|range(5)[::-1]|range(10)[2]|range(0,10,3)[-1]
d[1]|d[[1]]|d[none]|'abc'[true]|(1,2,3)[1:]|(1,2,3)[-1]|mixed|d|users[0]|none|t|fa|f|weird|[weird]|u|[u]|[html]|many.k07|many['k29']|many.k30
d.items()|d.keys()|d.values()|d.items()|list|items_dict.items|items_dict.items()|items_dict['items']|items_dict.x|items_dict['keys']|items_dict.get|items_dict.pop|d.get('a')|d.get('q')|d.get('q', 5)|d.get('a', 5)|ed.get('x')
s.upper()|s.lower()|s.title()|s.capitalize()|s.swapcase()|u.upper()|u.lower()|u.title()|'ß'.upper()|'ﬁx'.upper()|'ﬁx'.title()|'ﬁx'.capitalize()|'ΑΣ'.lower()|'ΑΣΑ'.lower()|'İ'.lower()|'ǆ'.title()|"they're bill's".title()|'hello world-foo_bar'.title()
spaces.strip()|'[' ~ spaces.lstrip() ~ ']'|'[' ~ spaces.rstrip() ~ ']'|'xxaxx'.strip('x')|'xyaxy'.lstrip('yx')|'xyaxy'.rstrip('yx')|'éaé'.strip('é')|'abc'.strip('')|'\u00a0a\u3000'.strip()|'abc'.strip(none)|'\x1ca\x1f'.strip()
'a,b,,c'.split(',')|' a  b '.split()|'a,b,c'.split(',', 1)|'a b c'.split(none, 1)|' a b  c '.split(none, 1)|'a b c '.split(maxsplit=1)|''.split()|''.split(',')|'a</think>b</think>c'.split('</think>')[-1]|'abc'.split('')|'a,b,c'.rsplit(',', 1)|' a  b  c '.rsplit(none, 1)|'a--b--c'.split('--')|'a,b'.split(sep=',')|'aXbXc'.split('X', 0)|'\n\na\nb'.split('\n')|'x'.split(' ')
text.splitlines()|text.splitlines(true)|''.splitlines()|'a\n'.splitlines()|'a\u2028b\x85c\x0bd'.splitlines()|text.split('\n')|'aaa'.replace('a','b')|'aaa'.replace('a','b',2)|'abc'.replace('','-')|'abc'.replace('','-',2)|''.replace('','x')|'aaaa'.replace('aa','b')|u.replace('世','X')|'a'.replace('a','')
s.startswith('Hell')|s.endswith('ld')|s.startswith(('x','H'))|s.endswith(('x',))|s.startswith('World', 7)|s.startswith('')|s.endswith('')|s.startswith('', 50)|s.find('o')|s.find('o', 5)|s.find('zz')|s.rfind('o')|s.index('W')|s.index('zz')|s.count('o')|s.count('')|u.find('世')|u.count('ü')|s.find('o', 5, 7)|s.find('', 12)|s.find('', 13)|s.count('l', 3, -1)|u.rfind('🌍')
'-'.join(['a','b'])|''.join([])|', '.join('abc')|'-'.join(d)|'-'.join([1])|'-'.join(d.keys())|'a-b-c'.partition('-')|'a-b-c'.rpartition('-')|'abc'.partition('-')|'abc'.rpartition('-')|'abc'.removeprefix('a')|'abc'.removesuffix('bc')|'abc'.removeprefix('x')
'5'.zfill(3)|'-5'.zfill(4)|'abc'.zfill(2)|'a'.center(4)|'a'.center(5,'*')|'ab'.center(5,'*')|'a'.ljust(3,'.')|'a'.rjust(3,'.')|'abc'.ljust(2)|'a\tb'.expandtabs(4)|'a\tb'.expandtabs()|'é'.center(4,'ü')
'abc'.isalpha()|'ab1'.isalnum()|'123'.isdigit()|'12a'.isdigit()|''.isdigit()|'²'.isdigit()|'²'.isdecimal()|'½'.isnumeric()|'五'.isnumeric()|' \t'.isspace()|'abc'.islower()|'ABC'.isupper()|'Abc'.istitle()|'a b'.isalpha()|'ab_1'.isidentifier()|'1a'.isidentifier()|'é'.isascii()|'a'.isascii()|'a\n'.isprintable()|'Ａ'.isalpha()|'aB'.islower()|'1a'.islower()|'12'.isupper()|'٣'.isdigit()
l.count(1)|l.index(2)|l.index(9)|(1,2,1).count(1)|l.copy()|d.copy()|l.append(4)|l.pop()|d.update({})|d.pop('a')|l.sort()|d.setdefault('x', 1)|l.extend([1])|l.insert(0, 1)|l.remove(3)|l.reverse()|d.clear()
'%s' % 'a'|'%s-%s' % (1, none)|'%d' % 5|'%5d|' % 5|'%-5d|' % 5|'%05d' % -5|'%+d' % 5|'% d' % 5|'%x' % 255|'%X' % 255|'%#x' % 255|'%o' % 8|'%.2f' % 3.14159|'%8.3f|' % 3.14159|'%e' % 12345.678|'%g' % 0.0001|'%g' % 1e10|'%r' % 'a'|'%s' % [1,'a']|'%%'|'%% %s' % 1|'%(a)s-%(b)d' % d|'%s' % undefined_var|'%d' % 3.9|'%d' % '3'|'%s %s' % 'a'|'%s' % (1,2)|'%c' % 65|'%c' % 'z'|'%5s|' % 'é'|'%-5s|' % 'é'|'%.2s' % 'abc'|'%i' % true|'%q' % 1|'a' % 1|'%s' % d|'%*d' % (5, 3)|'%.3s' % u|'%010.3f' % -3.14159|'%+.1e' % 0.0
'{} {}'.format(1, 'a')|'{0} {1} {0}'.format('a', 'b')|'{a} {b}'.format(a=1, b=2)|'{{}}'.format()|'{:>5}|'.format('a')|'{:<5}|'.format('a')|'{:^5}|'.format('a')|'{:*^7}'.format('a')|'{:05d}'.format(42)|'{:+}'.format(3)|'{:.2f}'.format(3.14159)|'{:,}'.format(1234567)|'{:_}'.format(1234567)|'{:x}'.format(255)|'{:#x}'.format(255)|'{:b}'.format(5)|'{:%}'.format(0.25)|'{:.1%}'.format(0.256)|'{!r}'.format('a')|'{!s:>4}'.format(1)|'{:e}'.format(1234.5)|'{:g}'.format(1e10)|'{0[1]} {1[a]}'.format([1,2], {'a': 3})|'{0.a}'.format({'a': 3})|'{:{}}'.format('a', 4)|'{'.format()|'}'.format()|'{} {0}'.format(1)|'{x}'.format()|'{1}'.format(1)|'{:d}'.format('a')|'{:s}'.format(1)|'{:>3}|'.format('世')|'{:10.3}|'.format('abcdef')|'{:.3}'.format(3.14159)|'{}'.format(none)|'{:5}|'.format(true)|'{:6}|'.format(2.5)|'{}'.format([1])|'{:>5}'.format([1])|'{a}'.format_map({'a': 1})
s|upper|s|lower|s|title|s|capitalize|u|upper|u|title|"they're bill's friends-from (the) [uk]"|title|spaces|trim|'xxaxx'|trim('x')|n|string|none|string|[1]|string|5|upper|none|trim|undefined_var|upper|undefined_var|trim
s|length|l|length|d|count|u|length|n|length|undefined_var|length|none|length|range(5)|length|d.items()|length|l|first|l|last|el|first|el|last|'abc'|first|u|last|d|first|d|last|undefined_var|first|undefined_var|last|none|first|range(3)|last|range(3)|first
l|join|l|join(', ')|users|join(', ', attribute='name')|'abc'|join('-')|[]|join|[1,none,true]|join('|')|d|join(',')|none|join|u|join('·')|[[1],[2]]|join(attribute=0)|l|join(1)
l|sort|l|sort(reverse=true)|['b','A','c']|sort|['b','A','c']|sort(case_sensitive=true)|users|sort(attribute='age')|map(attribute='name')|join(',')|users|sort(attribute='age,name')|map(attribute='name')|join(',')|[1,'a']|sort|d|sort|d|dictsort|d|dictsort(by='value')|{'b':2,'a':3}|dictsort(true)|{'b':2,'a':3}|dictsort(false,'value',true)|[3,1,2]|sort(true)|[true, 0, 2.5]|sort|[[2,1],[1,2]]|sort|d|dictsort(by='x')
[1,2,1,'a','A']|unique|list|['a','A']|unique(true)|list|users|unique(attribute='age')|map(attribute='name')|list|l|min|l|max|['b','A']|min|['b','A']|min(case_sensitive=true)|el|min|users|max(attribute='age')|l|sum|users|sum(attribute='age')|l|sum(start=10)|[]|sum|['a']|sum|[[1],[2]]|sum(start=[])|[1,2.5]|sum|users|sum(attribute='age', start=0.5)
l|reverse|list|s|reverse|u|reverse|d|reverse|list|(1,2)|reverse|list|l|list|'abc'|list|d|list|undefined_var|list|none|list|range(3)|list|range(2,8,3)|list|range(5,0,-2)|list|range(0)|list|range(3)|range(1,10,2)|range(5,0,-1)|range(1,2,0)|range('a')
l|map('string')|list|['a','b']|map('upper')|join|users|map(attribute='name')|list|users|map(attribute='tags', default='none')|list|users|map(attribute='nope')|list|users|map(attribute='tags.0')|list|l|map('nofilter')|list|l|map|list|['a b','c']|map('replace', ' ', '_')|list|[1.26, 2]|map('round', 1)|list|users|map(attribute='name', foo=1)|list|undefined_var|map('upper')|list|none|map('upper')|list
l|select|list|mixed|select|list|l|select('odd')|list|l|reject('odd')|list|l|select('>', 1)|list|l|select('divisibleby', 2)|list|l|select('in', [1,2])|list|users|selectattr('active')|map(attribute='name')|list|users|rejectattr('active')|map(attribute='name')|list|users|selectattr('age', 'equalto', 30)|map(attribute='name')|list|users|selectattr('tags', 'defined')|list|length|users|rejectattr('age', 'gt', 26)|map(attribute='name')|list|messages|selectattr('role','equalto','user')|list|length|messages|selectattr('role','eq','user')|length|l|select('nope')|list|users|selectattr|list|messages|rejectattr('role', 'in', ['system','user'])|list|messages|selectattr('role', 'equalto', 'user')|first|messages|selectattr('role', 'equalto', 'tool')|first|(messages|selectattr('role','equalto','zzz')) and 'truthy'|messages|map(attribute='content')|last
undefined_var|default('x')|none|default('x')|''|default('x')|''|default('x', true)|0|d('x', boolean=true)|undefined_var|default|'a'|default('b')|d.zz|default('y')|undefined_var.foo|default('x')|none|default('x', true)|false|default('x')
'42'|int|'42.7'|int|'abc'|int|'abc'|int(5)|' 42 '|int|'1_000'|int|'0x1A'|int(base=16)|'1A'|int(0,16)|'z'|int(base=36)|3.9|int|-3.9|int|true|int|none|int|[]|int(7)|''|int|'1e3'|int|'-5'|int|'+5'|int|'0b11'|int(base=0)|'3.5'|float|'abc'|float|'abc'|float(1.5)|5|float|none|float|'inf'|float|'nan'|float|'1e5'|float|' 2 '|float|'1_0.5'|float|'infinity'|float|undefined_var|int
5|abs|-5|abs|-2.5|abs|'a'|abs|true|abs|2.5|round|3.5|round|2.567|round(2)|2.567|round(2,'floor')|2.561|round(2,'ceil')|42|round|1234|round(-2)|1250|round(-2)|1350|round(-2)|2.675|round(2)|0.5|round|1.5|round|-2.5|round|1e20|round|'a'|round|2.5|round(method='x')|42|round(1,'floor')|12345.678|round(-2)|1.0|round(3)|25|round(-1)|35|round(-1)|-25|round(-1)
'hello world'|replace('o','0')|'aaa'|replace('a','b',2)|5|replace(5,6)|none|replace('None','x')|'a.b'|replace('.','')|s|replace('l')|'a'|replace('a','b',none)|text|indent|text|indent(2)|text|indent(2,true)|text|indent(2,blank=true)|text|indent('> ')|text|indent(width=1,first=true,blank=true)|''|indent|5|indent|'a\n'|indent|'a\n\nb'|indent(2)
'foo bar baz qux'|truncate(9)|'foo bar baz qux'|truncate(9, true)|'foo bar baz qux'|truncate(11)|'foo bar baz qux'|truncate(9, false, '!')|'foo bar'|truncate(2)|'foo bar baz qux'|truncate(9, leeway=0)|u|truncate(5,true,'…',0)|'foo bar baz qux'|truncate(9,end='')|s|wordcount|u|wordcount|''|wordcount|"it's a_b 3.5"|wordcount|'a'|center(5)|'a'|center|length
'%s is %s'|format('a', 1)|'%(x)s'|format(x=1)|'%d%%'|format(5)|'%s'|format(1, x=2)|'%s'|format|5|format|html|e|html|escape|html|safe|html|e|e|html|safe|e|html|forceescape|(html|safe) ~ html|(html|safe) + html|html + (html|safe)|('<b>'|safe).join(['<', '>'])|'<%s>'|safe|format('<i>')|('<'|safe)|upper|[('<'|safe)]|('<x>'|safe)[1]|('a<'|safe)|replace('a', '>')|('a<'|safe).replace('a','>')|('<'|safe) * 2|html|e|length|('<'|e) == '&lt;'|(html|safe) is string|'<'|escape is escaped|('a b'|safe).split()|('<{}>'|safe).format('<')
l|batch(2)|list|l|batch(2,'x')|list|[1,2,3,4,5]|slice(2)|list|[1,2,3,4,5]|slice(3,'f')|list|[]|batch(3)|list|[1]|slice(3)|list|[1,2]|slice(0)|list|d|items|list|undefined_var|items|list|l|items|list|none|items|list|users|groupby('age')|list|length|users|groupby('age')|map(attribute='grouper')|list|users|groupby('age')|map('first')|list|d|attr('a')|d|attr('items')|s|attr('upper')|d|list|first|('a',1)|list
d|tojson|mixed|tojson|u|tojson|weird|tojson|html|tojson|1.0|tojson|1e100|tojson|1e16|tojson|none|tojson|true|tojson|'é'|tojson(ensure_ascii=true)|u|tojson(true)|d|tojson(indent=2)|mixed|tojson(indent=4)|ed|tojson(indent=2)|el|tojson(indent=2)|[[],{}]|tojson(indent=1)|d|tojson(separators=(',',':'))|d|tojson(sort_keys=true)|d|tojson(indent=2, sort_keys=true)|d|tojson(indent='\t')|(1,2)|tojson|{1:2,none:3,true:4,2.5:5}|tojson|undefined_var|tojson|range(3)|tojson|d.keys()|tojson|[undefined_var]|tojson|(1e400)|tojson|{'a':{'b':[1,{'c':2}]}}|tojson(indent=2)|d|tojson(indent=0)|l|tojson(indent=2,separators=(', ',' : '))|{1:2,'a':3}|tojson(sort_keys=true)|{(1,2):3}|tojson|d|tojson(foo=1)|l|tojson(indent=none)|weird|tojson(ensure_ascii=true)|('<'|safe)|tojson|d|tojson(false,2)
n is defined|undefined_var is defined|undefined_var is undefined|d.zz is undefined|none is none|n is none|s is string|n is string|n is number|t is number|f is number|n is integer|t is integer|f is integer|f is float|t is boolean|n is boolean|d is mapping|l is mapping|l is iterable|s is iterable|n is iterable|d is iterable|undefined_var is iterable|l is sequence|s is sequence|d is sequence|n is sequence|none is sequence|range(3) is sequence|d.items() is sequence|undefined_var is sequence|t is true|n is true|fa is false|z is false|1 is odd|2 is even|4 is divisibleby 2|4 is divisibleby(3)|5 is eq 5|5 is equalto(5)|5 is ne 5|5 is lt 6|5 is gt 6|5 is ge 5|5 is le 4|1 is in [1,2]|3 is not in [1,2]|'a' is in 'abc'|'abc' is lower|'ABC' is upper|'aB' is lower|n is not defined|undefined_var is not defined|n is sameas n|none is sameas none|true is sameas true|1 is sameas true|s is nosuchtest|'upper' is filter|'nope' is filter|'odd' is test|'nope' is test|raise_exception is callable|s is callable|d.get is callable|undefined_var is callable|n is divisibleby 0|'a' is odd|s is defined and n is defined|s is string or n is string|not s is string|s is not string|n is eq 7 and t|5 is greaterthan 3|5 is lessthan 3|none is not none|(n is defined) == true|n is number is defined|d.nested is mapping|d.nested.x is sequence and d.nested.x is not string|[] is true|undefined_var is none|undefined_var is string|undefined_var is mapping|undefined_var is true|undefined_var is false|undefined_var is number
undefined_var|undefined_var.foo|undefined_var['foo']|undefined_var()|undefined_var + 1|1 + undefined_var|undefined_var == undefined_var|undefined_var == none|undefined_var == ''|undefined_var != 1|undefined_var < 1|-undefined_var|undefined_var ~ 'x'|not undefined_var|undefined_var or 'x'|undefined_var and 'x'|undefined_var in [1]|1 in undefined_var|undefined_var in undefined_var|[undefined_var]|{'a': undefined_var}|undefined_var[1:]|undefined_var * 2|undefined_var|abs|'a' in undefined_var|undefined_var in 'abc'|d[undefined_var]|d.zz.yy|(d.zz).yy|d.zz is defined|d.zz.yy is defined
1 + 'a'|'a' + 1|none + 1|[] + 1|'a' - 'b'|1 < 'a'|none < 1|1 in 5|1/0|1//0|1%0|1.0/0|1.0//0|1.0%0|0**-1|d[1:]|5[0]|5()|'a'()|s()|d()|none()|{[]: 1}|{{}: 1}|'a' * 'b'|[1] * 1.5|-'a'|+'a'|-[]|'a' in 1|1 < none|[1] < ['a']|{} < {}|s.nope()|s.upper(1)|s.encode('utf8').decode('utf8') is 5|l.nope|d.get()|''.join()|range()|'x'.center()|s.split(1)|s.replace('a')|s.startswith(1)|s.find()|s.__class__|s.__class__.__mro__|d.__class__|''.__len__()|l.__len__|d['__class__']|s._foo|d._foo
{d.keys(): 1}|{d.items(): 1}|l in d.keys()|'a' in d.keys()|'x' % undefined_var|[1]|truncate(5)|{}|truncate|[1,2,3]|truncate(3,end='',leeway=0)|dict(a=1)|dict(d, z=1)|dict([('a',1)])|dict()|dict([1])|dict(a=1)|items|list|namespace(a=1).a|namespace(a=1).b|namespace(d).a|namespace(a=1)|namespace()|namespace(_a=1)|namespace(self=1)|cycler('a','b').next()|cycler()|joiner(',')()|raise_exception('boom')|raise_exception('é: ' ~ n)|raise_exception(5)|raise_exception()|strftime_now('%Y-%m-%d')|strftime_now('%d %b %Y')|strftime_now('%A %B %-d, %H:%M:%S %p %j %y %%')|strftime_now('')|strftime_now('no directives')|strftime_now('%d %B %Y at %I:%M')
"a\nb\tc"|'a\'b'|"a\"b"|'a\\b'|'\x41\u00e9\U0001F600'|'\101'|'\0'|'\q'|'\é'|'\
x'|'a"b'|"a'b"|'%}'|'}}'|'{{'|'{%'|'{#'|"multi
line"|'\xe9'|'\a\b\f\v'|'\u00'|'\x4'
"""

STATEMENTS = r"""
{% set x = 1 %}{{ x }}
{% set x, y = 1, 2 %}{{ x }}{{ y }}
{% set (x, y) = [1, 2] %}{{ x }}{{ y }}
{% set x, y = 1 %}{{ x }}
{% set x, y = [1,2,3] %}{{ x }}
{% set x, (y, z) = 1, (2, 3) %}{{ x }}{{ y }}{{ z }}
{% set x = 1, 2 %}{{ x }}
{% set x %}block {{ n }}{% endset %}[{{ x }}]
{% set x | upper %}block{% endset %}{{ x }}
{% set x | replace('b', 'c') | upper %}block{% endset %}{{ x }}
{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}
{% set ns = namespace(x=1) %}{% set ns.y = 2 %}{{ ns.x }}{{ ns.y }}
{% set ns = namespace(x=1) %}{% set ns._y = 2 %}{{ ns.x }}
{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}
{% set d.x = 1 %}
{% set undefined_ns.x = 1 %}
{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}
{% set x = 0 %}{% for i in l %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}
{% for i in l %}{% set x = i %}{% endfor %}{{ x is defined }}
{% for i in l %}{% if loop.first %}{% set x = 5 %}{% endif %}{{ x }}{% endfor %}
{% if t %}{% set x = 5 %}{% endif %}{{ x }}
{% if fa %}{% set x = 5 %}{% endif %}{{ x }}|{{ x is defined }}
{% if fa %}{% set n = 5 %}{% endif %}{{ n }}
{% for i in l %}{{ n }}{% set n = i %}{{ n }}{% endfor %}{{ n }}
{{ n }}{% set n = 1 %}{{ n }}
{% for i in l %}{{ n }}{% endfor %}{% set n = 99 %}
{% macro m() %}{{ n }}{% endmacro %}{{ m() }}{% set n = 99 %}{{ m() }}
{% macro m() %}{{ s }}{% endmacro %}{{ m() }}
{% for n in l %}{{ n }}{% endfor %}{{ n }}
{% for i in l %}{{ i }}{% else %}empty{% endfor %}
{% for i in el %}{{ i }}{% else %}empty{% endfor %}
{% for i in undefined_var %}{{ i }}{% else %}empty{% endfor %}
{% for i in none %}{{ i }}{% endfor %}
{% for i in 5 %}{{ i }}{% endfor %}
{% for i in u %}{{ i }}.{% endfor %}
{% for k in d %}{{ k }},{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in l %}{{ k }}{% endfor %}
{% for (a, b), c in [((1,2),3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}
{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}
{% for i in l %}{{ loop.cycle('a','b') }}{% endfor %}
{% for i in l %}{{ loop.cycle() }}{% endfor %}
{% for i in [1,1,2,2,1] %}{{ loop.changed(i) }}{% endfor %}
{% for i in l %}{{ loop.nope is defined }}{% endfor %}
{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
{% for i in l %}{% set outer = loop %}{% for j in 'ab' %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% for i in l if i > 1 %}{{ i }}{{ loop.index }}{{ loop.last }}{{ loop.length }};{% endfor %}
{% for i in l if i > 100 %}{{ i }}{% else %}none{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{{ loop.revindex }}{{ loop.nextitem.content }}{% endfor %}
{% for i in [1,2,3,4] if i is even %}{{ i }}{{ loop.first }}{% endfor %}
{% set ns = namespace(go=true) %}{% for i in l if ns.go %}{{ i }}{% set ns.go = false %}{% endfor %}
{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}
{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in l %}{% continue %}{% else %}all{% endfor %}
{% for i in l %}{% break %}{% else %}all{% endfor %}
{% for i in l %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% else %}all{% endfor %}
{% for i in l %}{% for j in l %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% break %}
{% continue %}
{% for i in l %}{% set x %}a{% if i == 1 %}{% break %}{% endif %}b{% endset %}{{ x }}{% endfor %}
{% for i in l %}{% filter upper %}a{% if i == 1 %}{% continue %}{% endif %}b{% endfilter %}{% endfor %}
{% for i in l recursive %}{{ i }}{% endfor %}
{% for i in [1,[2,[3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for i in l %}{{ loop([1]) }}{% endfor %}
{% for loop in l %}{% endfor %}
{% for i in l %}{% set loop = 1 %}{% endfor %}
{{ loop }}
{% for i in l %}{{ loop }}{% endfor %}
{% for i in range(3) %}{{ i }}{% endfor %}{{ i is defined }}
{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}
{% for i in l[::-1] %}{{ i }}{% endfor %}
{% for m in messages[1:] %}{{ m.role }}{% endfor %}
{% for m in messages[::-1] %}{{ (messages|length - 1) - loop.index0 }}{{ m.role }}{% endfor %}
{% for i in l|reverse %}{{ i }}{{ loop.last }}{{ loop.length }}{% endfor %}
{% for i in l|map('string') %}{{ i }}{{ loop.revindex }}{% endfor %}
{% set g = l|map('string') %}{{ g|join }}-{{ g|join }}
{% set g = l|map('string') %}{{ g|first }}{{ g|list }}
{% set g = l|reverse %}{{ g|list }}{{ g|list }}
{% set g = l|select('odd') %}{% for i in g %}{{ i }}{% break %}{% endfor %}{{ g|list }}
{% set g = l|select('odd') %}{{ 1 in g }}{{ g|list }}
{% set v = d.items() %}{{ v|list }}{{ v|list|length }}
{% if n > 5 %}big{% elif n > 2 %}mid{% else %}small{% endif %}
{% if n > 50 %}big{% elif n > 2 %}mid{% else %}small{% endif %}
{% if n > 50 %}big{% elif n > 20 %}mid{% else %}small{% endif %}
{% if el %}a{% elif ed %}b{% elif e %}c{% elif z %}d{% elif none %}e{% elif undefined_var %}f{% else %}g{% endif %}
{% if n %}{% if s %}both{% endif %}{% endif %}
{% if not n %}a{% endif %}b
{% if n == 7 and (s == 'x' or t) %}yes{% endif %}
{% if 'a' in d and d['a'] is not none %}yes{% endif %}
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='z') }}{{ m(a=5) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}
{% macro m() %}{{ varargs|join(',') }}{% endmacro %}{{ m(1, 2, 3) }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(a, b=n) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(a=1, b) %}{% endmacro %}
{% macro m(a, a) %}{% endmacro %}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro m() %}{% set n = 1 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}
{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}body {{ n }}{% endcall %}
{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a }}+{{ b }}{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}{% if caller %}has{% else %}no{% endif %}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}
{% macro m() %}{{ s|upper }}{% endmacro %}{{ m()|lower }}{{ m() ~ 1 }}{{ m() is string }}
{% macro m(x) %}[{{ x }}]{% endmacro %}{{ l|map('string')|map('upper')|join }}{{ m }}
{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{{ inner(n) }}{% endmacro %}{{ outer() }}
{% macro m() %}{% for i in l %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}{% endmacro %}{{ m() }}
{% macro m() %}{{ m.name }}{{ m.arguments }}{% endmacro %}{{ m.foo is defined }}
{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}
{{ m() }}{% macro m() %}x{% endmacro %}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% macro m(x, y) %}{{ x }}{{ y }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'x': 3, 'y': 4}) }}{{ m(*[1], **{'y': 4}) }}
{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1, **{'x': 2}) }}
{% filter upper %}a{{ n }}b{% endfilter %}
{% filter replace('a', 'b')|upper %}aaa{% endfilter %}
{% with x = 1, y = 2 %}{{ x }}{{ y }}{% endwith %}{{ x is defined }}
{% with x = 1 %}{% with x = 2, y = x %}{{ x }}{{ y }}{% endwith %}{% endwith %}
{% with %}{% set x = 1 %}{{ x }}{% endwith %}{{ x is defined }}
{% generation %}text {{ n }}{% endgeneration %}
{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}
{% for i in l %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}
{% raw %}{{ x }}{% if %}{% endraw %}
{%- raw -%}  {{ x }}  {%- endraw -%}  y
{# comment #}a{#- b -#} c {#+ d +#}
{# unclosed
{% raw %}unclosed
{% print n %}
{% print n, s %}
{% do l.append(1) %}
{% if %}x{% endif %}
{% for %}x{% endfor %}
{% for i l %}x{% endfor %}
{% for i in %}x{% endfor %}
{% set = 1 %}
{% set 1 = 1 %}
{% set none = 1 %}
{% set true = 1 %}
{% set x.y.z = 1 %}
{% unknown %}
{% else %}
{{ }}
{{ 1 2 }}
{{ (1 }}
{{ 1) }}
{{ [1, }}
{{ {'a' 1} }}
{{ 'abc }}
{{ a b }}
{{ 1 + }}
{{ * 2 }}
{{ a.. }}
{{ a.'b' }}
{{ x|nofilter }}
{{ x is notest }}
{{ (x|nofilter) if false else 1 }}
{% if false %}{{ x|nofilter }}{% endif %}ok
{% if true %}{{ x|nofilter }}{% endif %}ok
{% if false %}{% for i in l %}{{ x|nofilter }}{% endfor %}{% endif %}ok
{{ 1 if 2 is nosuch else 3 }}
{{ f(a=1, 2) }}
{{ dict(a=1, a=2) }}
{{ s.upper }}{{ 1 }
{{ n $ 2 }}
{{ n ? 2 }}
{{ n & 2 }}
{{ !n }}
{{ n }}{{
{%
{{-n-}}
{{- n -}} x
  {{- n }} x {{ n -}}  
a  {%- if t -%}  b  {%- endif -%}  c
a  {%+ if t +%}  b  {%+ endif +%}  c
a {% if t %} b {% endif %} c
text with \ backslash and 'quotes' and unicode é世🌍
{{ '{{ n }}' }}
{{ "%}" }}{% set x = "%}" %}{{ x }}
{{ {'a': {'b': {}}} }}
{{ {'a': {'b': 1}}['a']['b'] }}
{{ [{'a': 1}][0].a }}
{{ ((1, 2), (3,)) }}
{{ [i for i in l] }}
{{ l|length > 2 }}
{{ -n|abs }}
{{ (-n)|abs }}
{{ n|abs + 1 }}
{{ 'a' ~ n|string|length }}
{{ 1 + 2 ~ 3 + 4 }}
{{ 2 * 3 ~ 4 }}
{{ not n == 7 }}
{{ n == 7 and not fa or none }}
{{ 1 if n else 2 if z else 3 }}
{{ 'x' if n == 7 and s is string else 'y' }}
{{ n in [7] and 'yes' }}
{{ not 7 in l }}
{{ 7 not in l and 3 in l }}
{{ 'yes' if 'a' in 'abc' else 'no' }}
{{ messages[0]['role'] == 'system' and messages[0].content }}
{{ messages[-1].role }}{{ messages[-5].role }}
{{ messages[-5] is defined }}
{{ messages[0].role.upper()[0:3] ~ '!' }}
{{ ('a', 'b')[1] }}{{ {'k': [1,2]}.k[1] }}
{{ users[0].name.title().split('o')[0] }}
{{ s.split(', ')[1].lower().replace('o', '0')|upper }}
{{ "a,b".split(",")|map("upper")|join("+") }}
{{ u|length }}{{ u[0:3] }}{{ u.split(' ')|length }}
{{ text.split('\n')|map('trim')|select|join('|') }}
{% set x = [1,2,3] %}{% set x = x + [4] %}{{ x }}
{% set x = dict(d, **{'new': 1}) %}{{ x.new }}{{ x|length }}
{% set x = {'a': 1} %}{% set y = x %}{{ y.a }}{{ x == y }}
{% set args = '{"a": 1}' %}{{ args if args is string else args|tojson }}
{% set sep = joiner(', ') %}{% for i in l %}{{ sep() }}{{ i }}{% endfor %}
{% set c = cycler('odd', 'even') %}{% for i in l %}{{ c.next() }}{{ c.current }} {% endfor %}{{ c.reset() }}{{ c.next() }}
{% set a = namespace(x=namespace(y=1)) %}{{ a.x.y }}{% set a.x.y = 5 %}
{% set a = namespace(x=namespace(y=1)) %}{% set b = a.x %}{% set b.y = 5 %}{{ a.x.y }}
{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' and not ns.found %}{{ m.content }}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}
{% set ns = namespace(l=[]) %}{% for i in l %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }}
{% block content %}x{% endblock x %}
{% extends 'a' %}
{% include 'a' %}
{% import 'a' as b %}
{% from 'a' import b %}
{{ super() }}
{{ true.foo }}
{{ 1.5.foo }}
{{ 1.foo }}
{{ ''.join(['a']) ~ "".join(('b',)) }}
{{ many }}
{{ many|tojson }}
{{ many|length }}{{ 'k15' in many }}{{ many|dictsort|first }}{{ many|list|last }}
{%- set ns = namespace(multi=true, last=messages|length - 1) -%}{%- for m in messages[::-1] -%}{%- set index = (messages|length - 1) - loop.index0 -%}{%- if ns.multi and m.role == "user" and not(m.content.startswith('<r>') and m.content.endswith('</r>')) -%}{%- set ns.multi = false -%}{%- set ns.last = index -%}{%- endif -%}{%- endfor -%}{{ ns.last }}
"""

# Whole templates of several lines, for whitespace control; "----" between them.
MULTILINE = r"""
  {% if t %}
  x
  {% endif %}
y
----
  {%- if t %}
  x
  {%- endif %}
y
----
  {% if t -%}
  x
  {% endif -%}
y
----
  {%+ if t %}
  x
  {%+ endif %}
y
----
{% if t +%}
  x
{% endif +%}
y
----
x{% if t %}
{% endif %}
----
{% for i in l %}
{{ i }}
{% endfor %}
----
{% for i in l -%}
{{ i }}
{%- endfor %}
----
{% for i in l %}
  {{ i }}
  {% if loop.last %}

  last
  {% endif %}
{% endfor %}
end
----
{{ n }}  {% if t %}  x{% endif %}
{{ n }}
  {% if t %}y{% endif %}

	 {% set x = 1 %}	{{ x }}
----
a{# c #}
b
  {# c #}
b
  {#- c #}
b
  {# several
  lines #}  
end
----
{% raw %}
a {{ x }}
{% endraw %}
b
  {% raw %}  c  {% endraw %}  
d
  {%- raw -%}  e
{%- endraw +%}
f
----
{% filter indent(2) %}
a
b
{% endfilter %}
{% set block %}
  one
  two
{% endset %}
[{{ block }}]
----
{% macro m(x) %}
  {{ x }}
{% endmacro %}
{{ m(1) }}{{ m(2) -}}

{% call m(3) %}{% endcall %}
----
{{ "multi
line" }}{% set x = "a
  b" %}{{ x }}
{{
  n
  +
  1
}}
----
{%- set list = [
  {'a': 1},
  {'b': 2},
] -%}
{{ list }}
{%
  if t
%}
yes
{%
  endif
%}
no
"""


def split_expressions(line):
    """Splits at '|' between cases; a '|' that starts a filter or is inside quotes stays."""
    filters = set(jinja2.filters.FILTERS) | {"nofilter"}
    cases, current, quote, depth = [], "", None, 0
    i = 0
    while i < len(line):
        c = line[i]
        if quote:
            current += c
            if c == "\\" and i + 1 < len(line):
                current += line[i + 1]
                i += 1
            elif c == quote:
                quote = None
        elif c in "'\"":
            quote = c
            current += c
        elif c == "|" and depth == 0:
            word = "".join(itertools.takewhile(lambda x: x.isalnum() or x == "_", line[i + 1:]))
            after = line[i + 1 + len(word):i + 2 + len(word)]
            if word in filters and after != "." and not (word == "d" and after in ("|", "[", " ") or
                                                         word == "e" and current == "") :
                current += c
            else:
                cases.append(current)
                current = ""
        else:
            depth += (c in "([{") - (c in ")]}")
            current += c
        i += 1
    return cases + [current]


def micro_sources():
    lines, pending = [], ""
    for line in EXPRESSIONS.strip("\n").split("\n"):
        pending += line
        if line.endswith("\\") or line.endswith('"multi'):  # a string over two lines
            pending += "\n"
            continue
        lines.append(pending)
        pending = ""
    for line in lines:
        for case in split_expressions(line):
            if case.strip():
                yield "{{ " + case + " }}"
    # Statements: one a line, and each also among lines, where whitespace control shows.
    for line in STATEMENTS.strip("\n").split("\n"):
        yield line
        yield "  " + line + "\n  x\n"
    yield from MULTILINE.strip("\n").split("\n----\n")
    # Whitespace control in all its combinations.
    for left, right, kind in itertools.product(["", "-", "+"], ["", "-", "+"], "bvc"):
        open_, body, close = {"b": ("{%", " set q = 1 ", "%}"), "v": ("{{", " n ", "}}"),
                              "c": ("{#", " c ", "#}")}[kind]
        if kind == "v" and right == "+":
            right = ""
        tag = open_ + left + body + right + close
        for before, after in itertools.product(["", "a", "a ", " ", "a\n", "a\n  ", "\n\n\t "],
                                               ["", "b", " b", "\n", "\n  b", " \n b", "\n\nb"]):
            yield before + tag + after
    for source in ["a\r\nb\r\n", "a\rb{% if t %}\r\nc{% endif %}\r\n", "a\n\n", "\n", "", "a\n{{ n }}\n\n",
                   "{{ n }}\n", "{% if t %}\n\n\na\n{% endif %}\n", "  {% raw %}  {{ }} {% endraw %}  \n x",
                   "{%- raw %}\n a\n {%- endraw %}\n b", "{% raw -%}\n a\n {% endraw -%}\n b",
                   "{%raw%}{{x}}{%endraw%}", "{%+raw%} a {%+endraw%}\nb", "{%if t%}a{%endif%}",
                   "{{n}}{{n}}", "{ { n } }", "{ {% if t %}{{% endif %}}", "{{{'a':1}}}", "{{{'a':1}.a}}", "#}", "%}", "}}", "{", "{{ '{' }}{"]:
        yield source


def micro():
    cases = []
    seen = set()
    for source in micro_sources():
        if source in seen:
            continue
        seen.add(source)
        result = render(source, VARIABLES)
        # Memory addresses differ from run to run; so does what they belong to.
        if " at 0x" in result.get("text", ""):
            continue
        cases.append({"template": source, **result})
    return cases


# ---- chats ----

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Current weather of a city.\nUse it for \"today\".",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "A city, e.g. Köln"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": ["integer", "null"], "description": "Days ahead", "nullable": True},
            "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["city"]},
        "return": {"type": "string", "description": "A sentence"}}},
    {"type": "function", "function": {
        "name": "noop", "description": "Does nothing", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {
        "name": "nested", "description": "Nested & <odd> 'types'", "parameters": {
            "type": "object", "required": ["where"], "properties": {
                "where": {"type": "object", "description": "Where", "properties": {
                    "lat": {"type": "number"}, "lon": {"type": "number", "default": 1.5},
                    "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}},
                    "required": ["lat"]},
                "either": {"oneOf": [{"type": "string", "description": "text"}, {"type": "integer", "default": 3}]},
                "flag": {"type": "boolean", "default": True},
                "anything": {}}}}},
]
CALL = {"type": "function", "id": "call_1a2b3c4d5", "function": {
    "name": "get_weather", "arguments": {"city": "Köln", "days": 2, "deep": {"a": [1, None, True, 1.5, "é"]}}}}
CALL_TEXT = {"type": "function", "id": "call_000000001", "function": {
    "name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}
BARE_CALL = {"name": "noop", "arguments": {}, "id": "abcdefghi"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(content, **more):
    return {"role": "tool", "content": content, **more}


PARTS = [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?"}]
THINK = "<think>\nLet me see.\n\nYes.\n</think>\n\nIt is 4."

CHATS = {
    "one user": [user("Hello!")],
    "system": [system("You are terse."), user("Hi")],
    "two turns": [user("2+2?"), assistant("4"), user("And 3+3?")],
    "system, two turns": [system("Be nice."), user("2+2?"), assistant("4"), user("And 3+3?")],
    "ends with assistant": [user("2+2?"), assistant("4")],
    "three turns": [system("S"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "spaces": [system("  padded \n"), user("\n\n indented\n  text \n"), assistant(" \tyes\n"), user(" ")],
    "unicode": [system("Antworte auf Deutsch 🇩🇪"), user("Grüße, 世界! \u200b e\u0301 \U0001F468\u200d\U0001F469"), assistant("Grüß Gott 👋🏽")],
    "markup in text": [user("<|im_end|> {{ x }} {% if %} <b>&amp;</b> 'q' \"dq\" \\n [INST] </s>"), assistant("{#ok#}")],
    "empty content": [system(""), user(""), assistant(""), user("x")],
    "none content": [user("x"), assistant(None), user("y")],
    "content parts": [user(PARTS)],
    "system parts": [system([{"type": "text", "text": "Be"}, {"type": "text", "text": " kind."}]), user("x")],
    "thinking": [user("2+2?"), assistant(THINK), user("3+3?")],
    "thinking last": [user("2+2?"), assistant(THINK)],
    "reasoning field": [user("2+2?"), assistant("It is 4.", reasoning_content="Let me see.\n"), user("3+3?"), assistant("6", reasoning_content="Hm.")],
    "thinking field": [user("2+2?"), assistant("It is 4.", thinking="Let me see."), user("3+3?")],
    "two users": [user("a"), user("b")],
    "two assistants": [user("a"), assistant("b"), assistant("c"), user("d")],
    "assistant first": [assistant("Welcome."), user("x")],
    "system later": [user("a"), system("now"), user("b")],
    "only system": [system("s")],
    "unknown role": [user("a"), {"role": "critic", "content": "bad"}],
    "developer role": [{"role": "developer", "content": "Follow rules."}, user("a")],
    "no role": [{"content": "x"}],
    "no content": [{"role": "user"}],
    "no messages": [],
    "tool call": [user("Weather in Köln?"), assistant("", tool_calls=[CALL]), tool("Sunny, 21°C", name="get_weather", tool_call_id="call_1a2b3c4d5")],
    "tool call and answer": [system("Use tools."), user("Weather?"), assistant(None, tool_calls=[CALL]), tool("{\"t\": 21}", name="get_weather", tool_call_id="call_1a2b3c4d5"), assistant("21 degrees."), user("Thanks")],
    "two tool calls": [user("Weather?"), assistant("Checking.", tool_calls=[CALL, CALL_TEXT]), tool("a", name="get_weather", tool_call_id="call_1a2b3c4d5"), tool("b", name="get_weather", tool_call_id="call_000000001"), assistant("Both.")],
    "bare tool call": [user("x"), assistant("", tool_calls=[BARE_CALL]), tool({"result": [1, 2]}, tool_call_id="abcdefghi")],
    "tool call without content": [user("x"), {"role": "assistant", "tool_calls": [CALL_TEXT]}, tool("ok", tool_call_id="call_000000001")],
    "tool answers twice": [user("x"), assistant("", tool_calls=[CALL]), tool("1", tool_call_id="call_1a2b3c4d5"), assistant("", tool_calls=[CALL_TEXT]), tool("2", tool_call_id="call_000000001"), user("y")],
    "tool parts": [user("x"), assistant("", tool_calls=[CALL]), tool([{"type": "text", "text": "part"}], tool_call_id="call_1a2b3c4d5")],
    "thinking and tools": [user("x"), assistant("", reasoning_content="I need a tool.", thinking="I need a tool.", tool_calls=[CALL]), tool("1", name="get_weather", tool_call_id="call_1a2b3c4d5")],
    "empty tool calls": [user("x"), assistant("none", tool_calls=[]), user("y")],
}

# The variables besides messages.
SETTINGS = [
    {"tools": None, "add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": TOOLS},
    {"tools": None, "add_generation_prompt": True, "enable_thinking": False},
    {"add_generation_prompt": True, "tools": TOOLS[1:2], "enable_thinking": True, "documents": [{"title": "T", "text": "Doc é"}],
     "date_string": "01 Jan 2025", "reasoning_effort": "high", "builtin_tools": ["browser", "python"], "clear_thinking": True,
     "model_identity": "You are a test.", "tools_in_user_message": False, "keep_past_thinking": True},
]


for settings in SETTINGS:
    settings.update(bos_token="<s>", eos_token="</s>")


def family(path):
    source = path.read_text(encoding="utf-8")
    cases = []
    for name, messages in CHATS.items():
        for number, settings in enumerate(SETTINGS):
            if number >= 3 and name[0] != "t" and name not in ("unicode", "system", "one user"):
                continue
            result = render(source, {"messages": messages, **settings})
            cases.append({"chat": name, "settings": number, **result})
    return {"template": source, "cases": cases}


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "tests/data/templates"
    (out / "families").mkdir(parents=True, exist_ok=True)

    def write(path, name, value, cases):
        # One case a line, so that a change shows as one.
        lines = ",\n".join(json.dumps(case) for case in cases)
        path.write_text("{" + json.dumps(name) + ": " + json.dumps(value) + ',\n"cases": [\n' + lines + "\n]}\n",
                        encoding="ascii")

    cases = micro()
    write(out / "micro.json", "variables", VARIABLES, cases)
    errors = sum("error" in case for case in cases)
    print(f"micro: {len(cases)} cases, {errors} of them errors")
    (out / "chats.json").write_text(json.dumps({"chats": CHATS, "settings": SETTINGS}, indent=1) + "\n",
                                    encoding="ascii")
    paths = {path.stem: path for path in sorted((HERE / "template_families").glob("*.jinja"))}
    demo = HERE.parents[1] / "deploy/demo-model/chat_template.jinja"
    if demo.exists():
        paths["demo_model"] = demo
    for name, path in paths.items():
        result = family(path)
        write(out / "families" / (name + ".json"), "template", result["template"], result["cases"])
        errors = sum("error" in case for case in result["cases"])
        raised = sum("raised" in case for case in result["cases"])
        print(f"{name}: {len(result['cases'])} cases, {errors} errors, {raised} of them raised")


if __name__ == "__main__":
    main()
