"""Chinese values of arguments, and how a request writes them.

chinese_words.txt holds the most frequent nouns of two characters in jieba's dictionary (MIT).
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from lingflash.train.data.quantities import integer, number
from lingflash.train.data.tables import read_table, read_text
from lingflash.train.data.tools import Param
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import Words, is_held_out

TEXTS = read_table("chinese.toml")
ZH_POOLS = {
    name: tuple(TEXTS[name].split()) for name in ("surnames", "given", "cities", "small", "filler")
}
_LATIN = {"id", "email", "filename", "phone", "url"}
LOOSE_KINDS = {"text", "title", "query"}
_DIGITS = "零一二三四五六七八九十"


@cache
def nouns(held_out: bool) -> tuple[str, ...]:
    """Chinese nouns of one side of the split."""
    return tuple(w for w in read_text("chinese_words.txt").split() if is_held_out(w) == held_out)


def noun(rng: random.Random, words: Words) -> str:
    """Draw a Chinese noun, now and then one made of two."""
    pool = nouns(words.held_out)
    x = rng.random()
    if x < 0.75:
        return rng.choice(pool)
    if x < 0.9:
        return rng.choice(pool) + rng.choice(pool)
    return rng.choice(pool)[0] + rng.choice(pool)[1]


def _city(rng: random.Random, words: Words) -> str:
    """Draw a known city; training has them all, the test those that are held out by their hash."""
    while not is_held_out(city := rng.choice(ZH_POOLS["cities"])) and words.held_out:
        pass
    return city


def _person(rng: random.Random, words: Words) -> str:
    while True:
        name = rng.choice(ZH_POOLS["surnames"]) + "".join(
            rng.choices(ZH_POOLS["given"], k=rng.choice((1, 2, 2)))
        )
        if is_held_out(name) == words.held_out:
            break
    x = rng.random()
    if x < 0.12:
        return name[0] + rng.choice(("老师", "经理", "先生", "女士", "总", "医生"))
    if x < 0.2:
        return rng.choice(("小", "老")) + name[0]
    return KINDS["person"].make(rng, words) if x > 0.93 else name


def text_value(rng: random.Random, words: Words) -> str:
    parts = [
        rng.choice(ZH_POOLS["small"]) if rng.random() < 0.5 else noun(rng, words)
        for _ in range(rng.randint(2, 6))
    ]
    if rng.random() < 0.15:
        parts.insert(rng.randint(1, len(parts) - 1), "，")
    return "".join(parts)


def _day(rng: random.Random, words: Words) -> str:
    y, m, d = rng.randint(2019, 2032), rng.randint(1, 12), rng.randint(1, 28)
    week = rng.choice("一二三四五六日")
    return rng.choice(
        (
            "今天", "明天", "后天", "昨天", "周末", "大后天", f"周{week}", f"下周{week}",
            f"星期{week}", f"{m}月{d}日", f"{m}月{d}号", f"{y}年{m}月{d}日",
            f"{y}-{m:02d}-{d:02d}",
            f"{y}-{m:02d}-{d:02d}", f"{d}号", "下个月", "本周", "国庆节", "春节",
        )
    )  # fmt: skip


def _clock(rng: random.Random, words: Words) -> str:
    h, m = rng.randint(0, 23), rng.choice((0, 15, 30, rng.randint(1, 59)))
    half = rng.choice(("早上", "上午", "下午", "晚上", ""))
    hour = _DIGITS[h % 10 + 1] if rng.random() < 0.2 else str(h % 12 + 1)
    text = rng.choice((f"{half}{hour}点", f"{half}{hour}点半", f"{h:02d}:{m:02d}", f"{h}点{m}分"))
    return rng.choice(("明天", "后天", "今天")) + text if rng.random() < 0.15 else text


_FIXED = {
    "currency": "人民币 美元 欧元 日元 英镑 港币 韩元 USD EUR CNY",
    "language": "英语 法语 日语 德语 韩语 俄语 西班牙语 中文 英文 日文 意大利语 阿拉伯语",
    "transport": "地铁 公交 飞机 火车 出租车 自行车 高铁",
    "priority": "高 中 低 紧急 普通",
    "room": "客厅 卧室 厨房 书房 浴室 阳台 餐厅 主卧 走廊 车库 办公室 会议室",
    "dish": "宫保鸡丁 麻婆豆腐 红烧肉 番茄炒蛋 饺子 牛肉面 糖醋排骨 鱼香肉丝 炒饭 火锅 包子 烤鸭",
}
_SWITCH = {True: "打开 开 开启 开一下 点亮", False: "关闭 关 关掉 关上 熄灭"}


def string(rng: random.Random, words: Words, kind: str) -> str:
    if kind in _FIXED:
        known = rng.random() < 0.6
        return rng.choice(_FIXED[kind].split()) if known else noun(rng, words)
    if kind == "ticker":
        letters = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(2, 4)))
        return letters if rng.random() < 0.4 else str(rng.randint(100000, 699999))
    if kind in _LATIN:
        return KINDS[kind].make(rng, words)
    if kind == "city":
        x = rng.random()
        if x < 0.7:
            return _city(rng, words)
        return (
            noun(rng, words)[:2] + rng.choice(("市", "县", "镇", "山", "路", ""))
            if x < 0.93
            else (KINDS["city"].make(rng, words))
        )
    if kind == "person":
        return _person(rng, words)
    if kind in ("date", "day"):
        return _day(rng, words)
    if kind in ("time", "clock"):
        return _clock(rng, words)
    if kind in LOOSE_KINDS:
        return text_value(rng, words)
    return noun(rng, words) if rng.random() < 0.85 else words.word(rng)


def draw_value(rng: random.Random, words: Words, param: Param) -> tuple[Any, str]:
    """Draw a value of a parameter and how a request writes it."""
    kind = param.kind
    if kind in ("int", "num"):
        value: Any = abs(integer(rng)) if kind == "int" else abs(number(rng))
        if kind == "int" and 1 <= value <= 10 and rng.random() < 0.15:
            return value, "两" if value == 2 and rng.random() < 0.5 else _DIGITS[value]
        return value, str(value)
    if kind in ("bool", "onoff"):
        truth = rng.random() < 0.55
        return truth, rng.choice(_SWITCH[truth].split())
    if kind == "enum":
        chosen = rng.choice(param.choices)
        return chosen, chosen
    if kind == "list":
        sort = rng.choice(("word", "person", "city", "email"))
        items = list(dict.fromkeys(string(rng, words, sort) for _ in range(rng.randint(2, 3))))
        glue = rng.choice(("和", "、", "，", "以及", "跟"))
        return items, "、".join(items[:-1]) + (glue if len(items) > 1 else "") + items[-1]
    text = string(rng, words, kind)
    return text, text
