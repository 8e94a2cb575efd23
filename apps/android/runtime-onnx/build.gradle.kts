plugins { alias(libs.plugins.android.library) }

android {
    namespace = "dev.tinyvit.edge.onnx"
    compileSdk = libs.versions.compile.sdk.get().toInt()
    defaultConfig { minSdk = libs.versions.min.sdk.get().toInt() }
}

kotlin { jvmToolchain(17) }

dependencies {
    api(project(":core"))
    implementation(libs.onnxruntime.android)
}
