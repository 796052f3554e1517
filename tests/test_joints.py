"""The joint orders, against the orders written out by hand."""

from hamr_lib import joints

OURS = (
    "wrist,thumb CMC,thumb MCP,thumb IP,thumb tip,index MCP,index PIP,index DIP,index tip,"
    "middle MCP,middle PIP,middle DIP,middle tip,ring MCP,ring PIP,ring DIP,ring tip,"
    "little MCP,little PIP,little DIP,little tip"
).split(",")


def test_order_of_the_library():
    assert list(joints.NAMES) == OURS
    assert joints.NUM_JOINTS == 21
    assert [joints.NAMES[j] for j in joints.TIPS] == [f"{f} tip" for f in joints.FINGERS]
    assert joints.NAMES[joints.MIDDLE_MCP] == "middle MCP"
    assert joints.NAMES[joints.RING_MCP] == "ring MCP"


def test_mano_order():
    mano = (
        "wrist,index MCP,index PIP,index DIP,middle MCP,middle PIP,middle DIP,little MCP,"
        "little PIP,little DIP,ring MCP,ring PIP,ring DIP,thumb CMC,thumb MCP,thumb IP"
    ).split(",")
    with_tips = mano + [f"{f} tip" for f in joints.FINGERS]
    assert [with_tips[i] for i in joints.FROM_MANO] == OURS


def test_rhd_order_is_tip_to_base():
    rhd = ["wrist"] + [
        name for f in joints.FINGERS for name in reversed([n for n in OURS if n.startswith(f)])
    ]
    assert [rhd[i] for i in joints.FROM_RHD] == OURS
    assert [OURS[i] for i in joints.FROM_RHD] == rhd


def test_stb_order_is_little_to_thumb():
    stb = ["wrist"] + [
        name for f in reversed(joints.FINGERS) for name in OURS if name.startswith(f)
    ]
    assert [stb[i] for i in joints.FROM_STB] == OURS
    assert [OURS[i] for i in joints.TO_STB] == stb
