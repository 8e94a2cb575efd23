extension RgbImage {
    /// Scales, shifts and moves channels first, with one float32 rounding per operation.
    ///
    /// - Precondition: the image is S x S, resized and cropped.
    /// - Returns: float32 (3, S, S), the input of an artifact that takes a tensor.
    public func normalised(_ contract: Preprocessing) -> [Float] {
        precondition(
            width == contract.size && height == contract.size,
            "\(width) x \(height) pixels for a model of \(contract.size): resize first")
        let plane = width * height
        var tensor = [Float](repeating: 0, count: Self.channels * plane)
        for channel in 0..<Self.channels {
            // A byte has 256 values: divide 256 times, not once a pixel.
            let values = (0..<256).map { byte in
                (Float(byte) / 255 - contract.mean[channel]) / contract.std[channel]
            }
            for pixel in 0..<plane {
                tensor[channel * plane + pixel] =
                    values[Int(pixels[pixel * Self.channels + channel])]
            }
        }
        return tensor
    }
}
