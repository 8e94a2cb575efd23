package dev.tinyvit.edge.app

import android.os.Build
import dev.tinyvit.edge.core.Device

/** The device that this runs on. */
fun thisDevice(): Device =
    Device(
        kind = if (Build.HARDWARE in setOf("goldfish", "ranchu")) "emulated" else "physical",
        manufacturer = Build.MANUFACTURER,
        model = Build.MODEL,
        os = "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
    )
