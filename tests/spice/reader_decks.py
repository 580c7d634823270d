"""Decks that the reader's tests share: each of a different kind, all solved by ngspice 39 as they stand."""

from __future__ import annotations

DECKS: dict[str, str] = {
    "divider": """a divider with every way to write a number
V1 in 0 5Volts ; end of line
R1 in out 1kOhm $ and another
R2 out 0 2K // and a third
* a comment, then a continuation
r3 out
+ 0
* comments and empty lines may stand between

+ 1MEG
I1 0 out 10uA
r4 out 0 1e-1MEG
C1 out 0 10pF
.op
.end
""",
    "brackets": """nodes in brackets and with commas
V1 (in,0) 1
R1 (in out) 1k
R2 out,0 1k
E1 (twice,0) (out,0) 2
Rtwice (twice 0) 1k
G1 (0 g) out 0 2m
Rg g 0 1k
.end
""",
    "parameters": """parameters in any order, functions, quotes and braces
.param total={half*2} half='base/2' base=3k , gain = max(2, base/1k)
.func square(x) {x*x}
.func blend(a, b) 'square(a) + b'
V1 in 0 {blend(2, 1)}
R1 in out {total}
R2 out 0 'base + 1k'
R3 out 0 base
E1 e 0 out 0 {gain}
Re e 0 r={half}
B1 b 0 V={blend(v(out), gain)}
Rb b 0 1k
.end
""",
    "subcircuits": """nested subcircuits with parameters, globals and local models
.global rail
.param unit=1k
.subckt cell top bottom params: r=2k n=1
.model clamp D (is=1e-12 n={n})
R1 top mid {r}
D1 mid bottom clamp
Rleak mid rail {unit*10}
.ends cell
.subckt pair a b scale=1
X1 a m cell r={unit*scale}
X2 m b cell r={unit*2*scale} n=1.5
.ends
Vrail rail 0 0.2
V1 in 0 1.5
Xpair in 0 pair scale=3
X2 in 0 cell
.end
""",
    "controlled": """all four linear controlled sources
V1 in 0 1
R1 in a 1k
Vsense a b 0
R2 b 0 2k
E1 e 0 a b 3
E2 e2 0 vcvs in b 0.5
G1 0 g in 0 1m
F1 0 f Vsense 2
F2 0 f2 E1 0.5
H1 h 0 Vsense 1k
Re e 0 1k
Re2 e2 0 1k
Rg g 0 1k
Rf f 0 1k
Rf2 f2 0 1k
Rh h 0 1k
.end
""",
    "polynomials": """POLY of several dimensions
V1 a 0 0.5
V2 b 0 -0.25
R1 a b 1k
E1 e 0 POLY(1) a 0 0.1 2 0.5
E2 e2 0 poly(2) a 0 b 0 1 2 3 4 5 6 7
E3 e3 0 POLY(3) (a,0) (b,0) (a,b) 0 1 0 2
G1 0 g poly(2) a 0 b 0 0 0 0 0 1m
F1 0 f POLY(2) V1 V2 0 1 2
H1 h 0 poly(1) V1 1 1k 1e5
Rg g 0 1k
Rf f 0 1k
Re e 0 1k
Re2 e2 0 1k
Re3 e3 0 1k
Rh h 0 1k
.end
""",
    "behavioural": """B sources and their relatives
.param k=2
V1 in 0 0.3
R1 in out 1k
R2 out 0 1k
B1 b1 0 V = tanh(k*v(out)) + v(in, out)
B2 0 b2 I={1m*v(in)^2 + i(V1)*0.5}
B3 b3 0 V='v(in) > 0.2 ? exp(v(in)) : 0'
E1 e1 0 VALUE={sqrt(abs(v(out))) + 1}
G1 0 g1 value = {min(v(in), v(out))*1m}
E2 e2 0 TABLE {v(in)} = (0,0) (0.25,1) (1,0)
R3 b1 0 1k
R4 b2 0 1k
R5 b3 0 1k
R6 e1 0 1k
R7 g1 0 1k
R8 e2 0 R='1k*(1 + v(in)^2)'
.end
""",
    "diodes": """diodes, forward, reverse, broken down, hot and large
.options temp=60 tnom=27
.model small D(is=1e-14 rs=5 n=1.7 cjo=2p vj=0.8 m=0.4 tt=5n kf=1e-9)
.model zener D is=1e-12, bv=5, ibv=1m
V1 in 0 8
V2 low 0 0.7
R1 in z 1k
D1 0 z zener
R2 low a 100
D2 a 0 small
R3 low b 100
D3 b 0 small area=3
R4 low c 100
D4 c 0 small off temp=27
D5 0 low small m=2
.end
""",
    "sources": """waveforms and their values at rest
V1 a 0 PULSE(1 2 1n 1n 1n 5n 20n)
V2 b 0 DC 2 AC 1 90 SIN(0 1 1meg)
V3 c 0 SIN(1 2 1k 0 0 30)
V4 d 0 PWL(0 3 1u 4, 2u -1) R=0
V5 e 0 EXP(0.5 2 1n 2n 10n 3n)
V6 f 0 AC 1
V7 g 0
I1 0 h DC=1m PULSE 0 2m
I2 0 h 1m AC 2
R1 a 0 1k
R2 b 0 1k
R3 c 0 1k
R4 d 0 1k
R5 e 0 1k
R6 f 0 1k
R7 g 0 1k
R8 h 0 1k
.tran 1n 100n 0 0.5n
.dc V1 0 5 1 I1 0 1m 0.5m
.ic v(h)=1
.nodeset v(a)=2 V(b) = 1.5
.end
""",
    "reactive": """inductors, couplings and initial conditions
V1 in 0 1
R1 in a 10
L1 a b 1m IC=0.1
L2 c 0 4m
K1 L1 L2 0.95
R2 b 0 10
R3 c 0 10
C1 b 0 1u IC=2
C2 c 0 c=1u m=3
.ic V(b)=0.5
.tran 1u 1m UIC
.end
""",
    "temperature": """resistors that know their temperature, with models
.temp 77
.options tnom=27
.model film R(rsh=50 tc1=1e-3 tc2=2e-6 defw=2u narrow=0.1u)
.model chip C(cj=1e-3 cjsw=1e-9 defw=2u)
V1 in 0 1
R1 in a 1k TC1=1e-3 TC2=1e-5
R2 a 0 2k TC=2e-3
R3 a b film L=20u W=1u
R4 b 0 film 1k
R5 b 0 1k m=2 dtemp=10 tc1=1e-3
R6 b 0 -5k
C1 a 0 chip L=10u W=5u
.end
""",
    "switches": """switches without hysteresis
.model vsw SW(VT=0.5 VH=0 RON=10 ROFF=1meg)
.model isw CSW(IT=1m RON=1 ROFF=10k)
V1 in 0 1
R1 in a 1k
S1 a 0 in 0 vsw
R2 in b 1k
S2 b 0 0 in vsw OFF
R3 in c 1k
Vs d 0 2
R4 d 0 1k
W1 c 0 Vs isw ON
.end
""",
    "interior": """references into subcircuits
.subckt meter p q
V0 p m 0
R1 m n 1k
R2 n q 1k
.ends
V1 in 0 3
X1 in mid meter
X2 mid 0 meter
B1 out 0 V=v(x1.n) + 1k*i(v.x2.v0)
Rout out 0 1k
F1 0 f V.X1.V0 2
Rf f 0 100
.end
""",
    "control": """a deck with a control block
V1 in 0 1
R1 in out 1k
R2 out 0 1k
.save v(out)
.print dc v(out)
.control
op
print v(out)
let half = v(out)/2
.endc
.end
""",
    "conditions": """lines that count under conditions
.param corner=2 load = 1k
V1 in 0 1
.if (corner == 1)
R1 in out {load}
.elseif (corner >= 2 && load < 2k)
.param extra={load/2}
R1 in out {load + extra}
.else
R1 in out 1
.endif
R2 out 0 {load}
.model m D is=1p
D1 out 0 m
.end
""",
    "options": """options, shunts and a resistor of nothing
.options reltol=1e-5 abstol=1p gmin=1e-10 rshunt=1e6 noacct
.option method=gear
V1 in 0 1
R1 in a 0
D1 a b dm
R2 b 0 1k
.model dm d
.end
""",
}
