"""The joint orders, against the orders written out by hand; RHD's and STB's with their readers."""

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
