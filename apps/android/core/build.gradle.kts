plugins { alias(libs.plugins.kotlin.jvm) }

kotlin { jvmToolchain(17) }

dependencies {
    compileOnly(libs.android.json)
    testImplementation(libs.android.json)
    testImplementation(libs.junit)
}

tasks.test {
    // What `python apps/goldens.py OUT` wrote: ./gradlew :core:test -Pgoldens=OUT
    val goldens = providers.gradleProperty("goldens").orNull?.let { rootDir.resolve(it) }
    if (goldens != null) {
        systemProperty("tinyvit.goldens", goldens.path)
        inputs.dir(goldens)
    }
}
