"""What the drawn lines and tables say: words, names, figures, dates and amounts in Chinese and in Latin letters, and
rows of characters that no language model could guess. Everything follows from the random generator that is passed in.
"""

import string
from random import Random

CHINESE = (
    "合同 发票 金额 日期 地址 电话 公司 有限责任 北京市 上海市 广东省 深圳 杭州 姓名 编号 账户 银行 支付"
    " 收款 客户 订单 产品 数量 单价 总计 备注 签字 盖章 部门 经理 项目 工程 施工 验收 报告 检验"
    " 标准 质量 安全 管理 办法 通知 会议 记录 学校 教育 医院 药品 处方 体检 结果 正常 血压 心率"
    " 时间 上午 下午 星期 春天 夏季 秋收 冬至 天气 温度 湿度 风力 交通 铁路 航班 车次 座位 出发"
    " 到达 入口 出口 请勿 吸烟 小心 地滑 营业 执照 税务 登记 证书 法定 代表 注册 资本 经营 范围"
    " 住所 成立 机关 核准 年度 财务 预算 利润 成本 收入 支出 资产 负债 人民币 元整 数据 模型 训练"
    " 识别 文字 图像 网络 速度 精度 设备 芯片 内存 电源 接口 说明书 保修"
).split()
LATIN = (
    "invoice number total amount date address company limited order quantity price unit account payment bank customer"
    " report quality standard safety meeting record school hospital result normal time morning flight train seat exit"
    " open closed warranty model data network speed memory power cable version manual license copyright page chapter"
    " Section Table Figure Index Summary January March June October Monday Friday North South Street Avenue Road"
    " Department Manager Engineer Director Budget Revenue Profit Cost Asset Shanghai London Paris Berlin Tokyo"
).split()
# The 3755 most used characters: the first level of GB 2312, in its own order.
COMMON = bytes(
    byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF if row < 0xD7 else 0xFA) for byte in (row, cell)
).decode("gb2312")
CODES = string.ascii_uppercase + string.digits


def chinese(random: Random, length: int) -> str:
    """About `length` Chinese characters; of every second line, words, else any of the common ones."""
    if random.random() < 0.5:
        text = ""
        while len(text) < length:
            text += random.choice(CHINESE)
        return text
    return "".join(random.choice(COMMON) for _ in range(length))


def latin(random: Random, words: int) -> str:
    """Some words, now and then in capitals."""
    text = " ".join(random.choice(LATIN) for _ in range(words))
    return random.choice((text, text, text.capitalize(), text.upper()))


def figures(random: Random) -> str:
    """A date, an amount, a number of an order, a share."""
    kind = random.randrange(5)
    if kind == 0:
        return f"{random.randint(1990, 2030)}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}"
    if kind == 1:
        return f"{random.randint(1, 99999):,}.{random.randint(0, 99):02d}"
    if kind == 2:
        return "".join(random.choice(CODES) for _ in range(random.randint(6, 14)))
    if kind == 3:
        return f"{random.randint(100, 999)}-{random.randint(1000, 9999)}-{random.randint(1000, 9999)}"
    return f"{random.randint(0, 100)}.{random.randint(0, 9)}%"


def line(random: Random, widest: int = 16) -> tuple[str, bool]:
    """(text of one line, whether it has Chinese characters); at most about `widest` characters of full width."""
    kind = random.random()
    if kind < 0.5:
        return chinese(random, random.randint(3, widest)), True
    if kind < 0.65:
        return f"{random.choice(CHINESE)}{random.choice(('：', ' ', '（'))}{figures(random)}", True
    if kind < 0.9:
        return latin(random, random.randint(1, max(1, widest // 4))), False
    return figures(random), False
