"""Sentences of the demo corpus, drawn from a grammar of English and one of Mandarin. Knows nothing of audio."""

import random
import re
from collections.abc import Mapping

ENGLISH = {
    "sentence": """{who} {did} {what} | where did {who} {do} {what}? | {when}, {who} {did} {what} {where}
        | {who} {did} {what} {where}, because {reason} | {who} said that {reason}, and {did} {what}
        | why would {who} {do} {what} {where}? | could {who} {do} {what} {where}? | {who} {did} {what} {when}
        | {number} {creatures} {moved} {where}, while {who} {did} {what}
        | whenever {reason}, {number} {creatures} {moved} {where}""",
    "when": """early this morning | late last night | on a quiet Sunday | after the thunderstorm
        | just before lunch | during the long voyage | every other Thursday | at half past seven | as usual
        | to our great surprise""",
    "who": """the old fisherman | my younger sister | a cheerful baker | our new neighbour
        | the village doctor | the night watchman | his favourite cousin | a tired engineer
        | the shy librarian | their youngest boy | a famous judge | the woman with the glasses""",
    "did": """painted | carried | measured | borrowed | described | photographed | repaired | discovered
        | wrapped up | looked for | gave away | weighed""",
    "do": """choose | throw out | polish | sketch | buy | hide | sell | examine | ask for | think about
        | bring | join""",
    "what": "{how} {thing}",
    "how": """the tiny | an enormous | a rusty | the golden | this peculiar | a thick | her yellow
        | that smooth | the forgotten | a half-finished | the usual | a very cheap""",
    "thing": """telescope | violin | jar of honey | wooden boat | leather suitcase | birthday cake
        | alarm clock | map of the city | engine | feather pillow | teapot | sheep fence | treasure box
        | picture book""",
    "where": """in the garden | beside the river | under the bridge | at the railway station
        | near the lighthouse | behind the school | across the valley | outside the theatre | up in the attic
        | along the beach | by the village church | through the thin fog""",
    "reason": """the weather was changing | nobody else had time | it was cheaper than ever
        | the children were asleep | everything was covered with snow | the last bus never came
        | the zoo had to close | the music grew louder | they could hear thunder | the voyage was over""",
    "number": """two | three | five | eight | eleven | thirteen | twenty-six | forty-nine | seventy
        | a hundred""",
    "creatures": """geese | wild horses | sheep | foxes | butterflies | jackdaws | small frogs | young wolves
        | bees""",
    "moved": """wandered | rushed | slept | gathered | were chasing each other | jumped about | moved slowly
        | vanished""",
}

# Only characters that espeak-ng pronounces correctly: it reads 熊, for example, as the English word "xiong".
MANDARIN = {
    "sentence": """{who}{did}{what}。 | {when}，{who}{where}{did}{what}。
        | {who}{where}{did}{what}，因为{reason}。 | {who}说{reason}，所以{did}{what}。
        | {who}为什么{where}{did}{what}？ | {when}{reason}，{who}却{did}{what}。 | {when}，{who}{did}{what}。
        | {who}还没有找到{what}。 | 你知道{who}{where}{did}{what}吗？
        | {where}的{number}{creatures}，把{who}吓了一跳。""",
    "when": """今天早上 | 昨天晚上 | 去年冬天 | 下雨以后 | 吃饭之前 | 星期六下午 | 八月十五 | 放学的时候
        | 每个周末 | 天黑之后""",
    "who": """我的妹妹 | 那位老医生 | 隔壁的邻居 | 年轻的工程师 | 小李和小王 | 两个学生 | 图书馆的管理员
        | 卖水果的阿姨 | 爱唱歌的司机 | 他的外公 | 聪明的女儿 | 三年级的老师""",
    "did": """买了 | 修好了 | 找到了 | 画了 | 打开了 | 借走了 | 拍下了 | 送来了 | 忘记了 | 丢了 | 洗干净了
        | 仔细看了 | 想起了""",
    "what": """一辆红色的自行车 | 三本旧书 | 一把黑色的雨伞 | 两箱新鲜的苹果 | 一张很大的地图 | 一件漂亮的毛衣
        | 一只安静的小猫 | 半杯热咖啡 | 一封奇怪的信 | 四双布鞋 | 六个月饼 | 九条鱼 | 女儿的绿裙子
        | 一块普通的石头""",
    "where": """在河边 | 在火车站 | 在学校门口 | 在山顶上 | 在厨房里 | 在博物馆 | 在大桥下面 | 在湖边的公园
        | 在窗户旁边 | 在村子西边 | 在日出的海边 | 在热闹的广场""",
    "reason": """天气突然变冷了 | 大家都很高兴 | 明天要去旅行 | 没有人愿意帮忙 | 路上的雪太厚了
        | 外面刮起了大风 | 这里的风景特别美 | 朋友们就要来了 | 飞机又晚点了 | 月亮从云里出来了""",
    "number": "两群 | 三群 | 五群 | 七群 | 八群 | 十二群 | 二十六群 | 四十九群",
    "creatures": "白鹅 | 蝴蝶 | 小松鼠 | 青蛙 | 绵羊 | 狐狸 | 乌鸦 | 海豚 | 蜜蜂",
}

GRAMMARS = {"en": ENGLISH, "cmn": MANDARIN}


def draw_sentence(grammar: Mapping[str, str], rng: random.Random) -> str:
    """Returns a random sentence: an alternative of `sentence`, its `{slots}` filled in the same way.

    >>> draw_sentence({"sentence": "the {animal} sleeps", "animal": "cat"}, random.Random(0))
    'The cat sleeps.'
    """

    def draw(symbol: str) -> str:
        alternative = rng.choice(grammar[symbol].split("|")).strip()
        return re.sub(r"{(\w+)}", lambda slot: draw(slot[1]), alternative)

    text = draw("sentence")
    return text[0].upper() + text[1:] + ("" if text.endswith(("?", "。", "？")) else ".")
