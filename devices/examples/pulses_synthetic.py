"""Write pulses-synthetic.csv: staircases as a lab would measure them, of devices that were made up.

    python devices/examples/pulses_synthetic.py > devices/examples/pulses-synthetic.csv

Eight devices with soft bounds near 2 uS and 50 uS, two cycles of 50 pulses up and 50 down, read after
every pulse. No device was measured.
"""

import numpy as np

DEVICES, CYCLES, PULSES = 8, 2, 50
STEP, STEP_SPREAD, UP_DOWN, UP_DOWN_SPREAD, BOUND_SPREAD = 0.06, 0.15, 0.1, 0.03, 0.05
CYCLE_TO_CYCLE, WRITE_NOISE = 0.2, 0.1
LOW, HIGH = 2.0, 50.0  # uS, at w = -1 and 1


def main() -> None:
    draw = np.random.default_rng(2026).standard_normal
    print("# Synthetic: no device was measured. Made by devices/examples/pulses_synthetic.py.")
    print("device,cycle,pulse,direction,conductance [uS]")

    def show(device: int, cycle: int, pulse: int, direction: str, w: float) -> None:
        g = LOW + (w + WRITE_NOISE * STEP * draw() + 1) / 2 * (HIGH - LOW)
        print(f"D{device},{cycle},{pulse},{direction},{max(g, 0.0):.4f}")

    for device in range(1, DEVICES + 1):
        step = STEP * (1 + STEP_SPREAD * draw())
        tilt = UP_DOWN + UP_DOWN_SPREAD * draw()
        high, low = 1 + BOUND_SPREAD * draw(), -1 + BOUND_SPREAD * draw()
        w = max(-0.9, low)
        for cycle in range(1, CYCLES + 1):
            show(device, cycle, 0, "up", w)
            for sign, direction in ((1, "up"), (-1, "down")):
                for pulse in range(1, PULSES + 1):
                    own = step * (1 + sign * tilt)
                    room = 1 - w / high if sign > 0 else 1 - w / low
                    w += sign * own * room + CYCLE_TO_CYCLE * own * draw()
                    w = min(max(w, low), high)
                    show(device, cycle, pulse, direction, w)


if __name__ == "__main__":
    main()
